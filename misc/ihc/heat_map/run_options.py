"""The options of the run that made the results of a folder, so that a later run does not mix two sorts of results.

The file holds the options of the last run, and which slides still have results of other options: those that a run with
`--overwrite` and changed options did not redo.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from misc.files import write_atomic

OPTIONS, STALE = "options", "made_with_other_options"


class RunOptions:
    """The options of a run beside its results.

    Attributes:
        stale: names of the options that were others when the results of a slide were made, by slide.
    """

    def __init__(
        self, path: str | Path, options: dict, slides: Collection[str], have: Collection[str], overwrite: bool
    ):
        """Compare with the run before; nothing is written yet.

        Args:
            path: the file, there or not.
            options: of this run, value by name without dashes; what JSON can hold.
            slides: that this run is about.
            have: slides that have results already.
            overwrite: whether this run replaces the results of its slides.

        Raises:
            ValueError: results would be kept that other options made, in one line that names the option; or the file
                is broken.
        """
        self.path, self.options = Path(path), json.loads(json.dumps(options))
        earlier, self.stale = _read(self.path, overwrite)
        changed = [] if earlier is None else _differing(earlier, self.options)
        if not overwrite:
            self._check(earlier, changed, slides)
        if changed:
            self.stale |= {slide: sorted({*self.stale.get(slide, []), *changed}) for slide in have}

    def _check(self, earlier: dict | None, changed: list[str], slides: Collection[str]) -> None:
        for name in changed:
            raise ValueError(
                f"{self.path}: the results there were made {_say(name, earlier.get(name))}, this run is "
                f"{_say(name, self.options.get(name))}; --overwrite replaces them, or give another --output_dir"
            )
        for slide in sorted(self.stale.keys() & set(slides)):
            raise ValueError(
                f"{self.path}: the results of {slide} were made with another --{self.stale[slide][0]}; --overwrite "
                "replaces them"
            )

    def write(self) -> None:
        """Write the file, before the first result that these options make."""
        content = {OPTIONS: self.options} | ({STALE: self.stale} if self.stale else {})
        write_atomic(self.path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def done(self, slide: str) -> None:
        """Note that all results of a slide are those of this run."""
        if self.stale.pop(slide, None):
            self.write()


def _read(path: Path, overwrite: bool) -> tuple[dict | None, dict[str, list[str]]]:
    """Return the options of the run before, `None` where there was none, and which slides have those of others."""
    if not path.is_file():
        return None, {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        stale = {str(slide): [str(name) for name in names] for slide, names in content.get(STALE, {}).items()}
        return dict(content[OPTIONS]), stale
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if overwrite:
            return None, {}
        raise ValueError(f"{path}: does not hold the options of a run; --overwrite replaces all results") from error


def _differing(earlier: dict, options: dict) -> list[str]:
    return [name for name in dict.fromkeys([*options, *earlier]) if options.get(name) != earlier.get(name)]


def _say(name: str, value) -> str:
    if value is None or value is False:
        return f"without --{name}"
    if value is True:
        return f"with --{name}"
    return f"with --{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
