"""Several jobs share a cohort: the slides of each job, the file for its lines, and how these files are joined."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from misc.files import full_stem
from misc.summary import PREDICTED, UPLOADED, WAITING, Summary, read_lines

_T = TypeVar("_T")
# Folder in the output folder with the lines of each job: each job writes its own file, so no lock is needed.
PARTS_DIR = "parts"
# Value of --shard for shards named on standard input, one after the other, in one process; and the line printed after
# each.
ASKED, ENDED = "-", "--shard={shard} ended with {code}"
_PART = re.compile(r"(?P<index>\d+)-of-(?P<count>\d+)\.csv")


class Shard(NamedTuple):
    """Every `count`-th slide of a sorted list, from `index` on, which counts from 0 as `sbatch --array=0-7` does."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`.

        Raises:
            ValueError: it has another form, or `i` is not from 0 to n - 1.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found:
            raise ValueError(f"--shard takes i/n, as 0/8 to 7/8, got `{text}`")
        shard = cls(int(found[1]), int(found[2]))
        if shard.index >= shard.count:
            last = max(shard.count - 1, 0)
            raise ValueError(f"--shard={text}: i counts from 0 to {last} (sbatch --array=0-{last})")
        return shard

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, items: Sequence[_T]) -> list[_T]:
        """Return this shard's part of a list."""
        return list(items[self.index :: self.count])

    def part(self, output_dir: Path) -> Path:
        """Return the file with this shard's lines of the summary."""
        return output_dir / PARTS_DIR / f"{self.index}-of-{self.count}.csv"


@dataclass
class Joined:
    """The results of a cohort: slides that are done or predicted, and the reasons for all others."""

    done: list[str] = field(default_factory=list)
    predicted: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    nuclei: int = 0


def join_parts(output_dir: Path) -> Joined:
    """Join the lines of all shards into `summary.csv`, and tell which slides lack results.

    The parts stay, so that shards that still run, or run again, can be joined once more.

    Raises:
        FileNotFoundError: no shard has written anything.
    """
    folder = output_dir / PARTS_DIR
    parts = [path for path in folder.glob("*.csv") if _PART.fullmatch(path.name)]
    if not parts:
        raise FileNotFoundError(f"no shard has written anything to {folder}; run_infer.py wsi --shard=i/n does")
    parts.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))  # if several have a slide, the newest line counts
    lines: dict[str, dict] = {}
    for path in parts:
        lines |= read_lines(path)
    merged = Summary(output_dir / "summary.csv").join(lines)
    joined = _judged({slide: merged[slide] for slide in sorted(lines)}, output_dir)
    return _with_silent_shards(joined, parts)


def _judged(lines: dict[str, dict], output_dir: Path) -> Joined:
    """Sort the lines of slides by their status."""
    joined = Joined()
    for slide, line in lines.items():
        names = (full_stem(slide), slide)  # a DICOM slide may be a folder: its whole name
        if line["status"] == "failed":
            joined.failed[slide] = line["reason"]
        elif line["status"] == WAITING:
            joined.failed[slide] = "not done yet; its shard ended early, or still runs"
        elif line["status"] == PREDICTED:
            joined.predicted.append(slide)
        elif not line.get(UPLOADED) and not any((output_dir / "json" / f"{name}.json").is_file() for name in names):
            joined.failed[slide] = line["reason"] or "its results are gone"
        else:
            joined.done.append(slide)
            joined.nuclei += int(line["nuclei"] or 0)
    return joined


def _with_silent_shards(joined: Joined, parts: Sequence[Path]) -> Joined:
    """Add the shards without any line, by the latest number of shards; their slides are not known."""
    shards = [_PART.fullmatch(path.name) for path in parts]
    count = int(shards[-1]["count"])
    wrote = {int(shard["index"]) for shard in shards if int(shard["count"]) == count}
    for index in sorted(set(range(count)) - wrote):
        joined.failed[f"--shard={index}/{count}"] = "has written nothing; run it"
    return joined
