"""A cohort: the slides of a folder or of a table, and the data of each."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from misc.files import check_unique_stems, printable, write_atomic
from misc.slides.folder import find_slides
from misc.slides.remote import is_uri, local_path
from misc.summary import COLUMNS
from misc.text import counted

logger = logging.getLogger(__name__)

# Columns of a table that say how to read a slide; all others are copied to the summary.
PATH, NUMBERS, FILES = "path", ("mpp", "mag"), ("mask", "regions")


@dataclass(frozen=True)
class CohortSlide:
    """A slide of the cohort.

    Attributes:
        path: the file, or the folder of a DICOM slide.
        uri: address to fetch to `path` first; empty where the slide is a local file.
        mpp, mag: um/px and objective power of level 0, where the file has none or a wrong one.
        mask: image; its black px are not tissue.
        regions: file of annotations; tissue outside all of them is left out.
        extra: further columns of its line in the summary.
    """

    path: Path
    mpp: float | None = None
    mag: float | None = None
    mask: Path | None = None
    regions: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)
    uri: str = ""


def find_cohort(
    input_dir: Path | None,
    table: Path | None,
    pattern: str,
    recursive: bool,
    output_dir: Path,
    scratch: Path | None = None,
) -> tuple[list[CohortSlide], dict[Path, str]]:
    """Return the slides of a table, or else of a folder, in a fixed order, and why others cannot be opened.

    Slides that the table names by a URI get a path in `scratch`. If `output_dir` lies in the folder, its thumbnails and
    masks are not slides.

    Raises:
        FileNotFoundError: no such table or folder, or no slide in it.
        ValueError: the table makes no sense, or two slides would write the same files.
    """
    if table:
        return read_cohort(table, scratch), {}
    own = [(output_dir / kind).resolve() for kind in ("thumb", "mask")]
    found = find_slides(input_dir, pattern, recursive, lambda path: path.parent.resolve() in own)
    if found.others:
        names = ", ".join(printable(path.name) for path in found.others)
        logger.info("%s left out, no slide: %s", counted(len(found.others), "file"), names)
    if not found.slides and not found.unusable:
        raise FileNotFoundError(f"no slide matches {pattern} in {input_dir}")
    return [CohortSlide(path) for path in found.slides], dict(sorted(found.unusable.items()))


def read_cohort(table: Path, scratch: Path | None = None) -> list[CohortSlide]:
    """Read a CSV file with a line for each slide; paths are relative to its folder.

    Slides that it names by a URI get a path in `scratch`, see `local_path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no slide, no column `path`, a column of the summary, or a wrong number.
    """
    if not table.is_file():
        raise FileNotFoundError(f"no such table: {table} (--slides)")
    try:
        with open(table, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = list(reader.fieldnames or ())
            lines = [(reader.line_num, line) for line in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table}: no table of values separated by commas in UTF-8: {error}") from error
    if PATH not in columns:
        raise ValueError(f"{table}: no column `{PATH}` in {columns}; the first line names columns, separated by commas")
    taken = sorted(set(columns) & set(COLUMNS) - set(NUMBERS))
    if taken:
        raise ValueError(f"{table}: the summary has columns {taken} of its own; rename them")
    slides = [_slide(line, f"{table}, line {number}", table.parent, scratch) for number, line in lines if line[PATH]]
    if not slides:
        raise FileNotFoundError(f"no slide in {table}")
    check_unique_stems(slide.path for slide in slides)
    return sorted(slides, key=lambda slide: slide.uri or str(slide.path))


def _slide(line: dict, where: str, folder: Path, scratch: Path | None) -> CohortSlide:
    if None in line or None in line.values():
        raise ValueError(f"{where}: not as many values as columns")
    line = {name.strip(): value.strip() for name, value in line.items()}
    place = line.pop(PATH)
    says: dict = {"uri": place, PATH: local_path(place, scratch)} if is_uri(place) else {PATH: folder / place}
    for name in NUMBERS:
        if text := line.pop(name, ""):
            says[name] = _positive(text, f"{where}: {name}")
    for name in FILES:
        if text := line.pop(name, ""):
            says[name] = folder / text
    return CohortSlide(**says, extra=line)


def _positive(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{what} must be a positive number, got `{text}`")
    return value


def write_cohort(table: Path, slides: Iterable[CohortSlide]) -> None:
    """Write a table that `read_cohort` reads; works from any folder."""
    slides = list(slides)
    extra = dict.fromkeys(name for slide in slides for name in slide.extra)
    text = io.StringIO()
    writer = csv.DictWriter(text, [PATH, *NUMBERS, *FILES, *extra], restval="", lineterminator="\n")
    writer.writeheader()
    for slide in slides:
        files = {name: path and Path(path).resolve() for name, path in ((n, getattr(slide, n)) for n in (PATH, *FILES))}
        files[PATH] = slide.uri or files[PATH]
        writer.writerow({**files, **{name: getattr(slide, name) for name in NUMBERS}, **slide.extra})
    table.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(table, text.getvalue())
