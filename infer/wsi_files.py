"""Files of slide runs: which of a folder are slides, the names of what is written, and what killed runs left."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infer.options import WsiOptions
from misc.files import check_unique_stems, full_stem, list_files, printable, unusable_name
from misc.slides.handler import SlideError, get_file_handler, is_slide
from misc.slides.sources import SLIDE_SUFFIXES

logger = logging.getLogger(__name__)

# Bytes of a name that locks, temporary files and spools take over from the slide's; a file system allows 255 in all.
MAX_STEM_BYTES = 150
_DIGEST_LENGTH = 16


# ---------------------------------------------------------------------------------------------- input


@dataclass
class FoundFiles:
    """What the input folder holds.

    Attributes:
        slides: what is to be done, with different stems.
        unusable: what has a slide's name or its stem and cannot be opened, and why.
    """

    slides: list[Path] = field(default_factory=list)
    unusable: dict[Path, str] = field(default_factory=dict)


def find_slides(options: WsiOptions) -> FoundFiles:
    """Look through the input folder; what is no slide is listed in the log.

    Raises:
        FileNotFoundError: there is none.
        ValueError: two that can be opened have the same stem.
    """
    found, others = FoundFiles(unusable=_no_files(options)), []
    for path in list_files(options.input_dir, options.pattern, options.recursive):
        if _is_result(path, options.output_dir):
            continue
        if is_slide(path):
            if reason := unusable_name(path):
                found.unusable[path] = f"{printable(path)}: {reason}"
            else:
                found.slides.append(path)
        elif reason := _unreadable(path):
            found.unusable[path] = reason
        else:
            others.append(path)
    if others:
        names = ", ".join(printable(path.name) for path in others)
        logger.info("%d files are no slides and are passed over: %s", len(others), names)
    if not found.slides and not found.unusable:
        raise FileNotFoundError(f"no slide matches {options.pattern} in {options.input_dir}")
    _sort_out_stems(found)
    return found


def _no_files(options: WsiOptions) -> dict[Path, str]:
    """Return what has a slide's name and is no file; a folder is none where its content is looked through anyway."""
    search = options.input_dir.rglob if options.recursive else options.input_dir.glob
    named = [path for path in search(options.pattern) if path.suffix.lower() in SLIDE_SUFFIXES and path.name[0] != "."]
    reasons = {}
    for path in sorted(named):
        if path.is_dir() and not options.recursive:
            reasons[path] = f"{printable(path)}: is a folder; --recursive looks into it"
        elif path.is_symlink() and not path.exists():
            reasons[path] = f"{printable(path)}: is a link to {printable(os.readlink(path))}, which is not there"
    return reasons


def _is_result(path: Path, output_dir: Path) -> bool:
    """Tell whether a file is a thumbnail or a mask of ours, when the output folder lies in the input folder."""
    return path.parent.name in ("thumb", "mask") and path.parent.parent.resolve() == output_dir.resolve()


def _unreadable(path: Path) -> str | None:
    try:
        with open(path, "rb") as handle:
            handle.read(1)
    except OSError as error:
        return f"{printable(path)}: cannot be read ({error.strerror})"
    return None


def _sort_out_stems(found: FoundFiles) -> None:
    """Refuse slides of one stem; of a slide and broken files of its stem, the slide is done."""
    by_stem: dict[str, list[Path]] = {}
    for path in found.slides:
        by_stem.setdefault(full_stem(path), []).append(path)
    for paths in by_stem.values():
        reasons = {path: reason for path in paths if len(paths) > 1 and (reason := _why_closed(path))}
        if len(reasons) == len(paths):
            del reasons[paths[0]]  # done, and reported, as any other
        found.unusable |= reasons
    found.slides = [path for path in found.slides if path not in found.unusable]
    check_unique_stems(found.slides)


def _why_closed(path: Path) -> str | None:
    try:
        get_file_handler(path).close()
    except SlideError as error:
        return str(error)
    return None


# ---------------------------------------------------------------------------------------------- output


def short_stem(stem: str) -> str:
    """Return a stem that leaves room for what is put around it: long ones are cut and end in a digest of the whole."""
    data = stem.encode()
    if len(data) <= MAX_STEM_BYTES:
        return stem
    digest = hashlib.sha256(data).hexdigest()[:_DIGEST_LENGTH]
    return f"{data[: MAX_STEM_BYTES - _DIGEST_LENGTH - 1].decode(errors='ignore')}~{digest}"


def lock_path(path: Path) -> Path:
    """Return the lock of a slide, beside its JSON file `path`."""
    return path.with_name(f".{short_stem(path.stem)}.lock")


def joined_path(path: Path) -> Path:
    """Return where a slide's nuclei are until its JSON file `path` is whole; no `.json`, lest it be taken for one."""
    return path.with_name(f".{short_stem(path.stem)}.joined")


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Say what was being written when the block cannot write: a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def result_path(path: Path) -> Iterator[Path]:
    """Yield where a result is to be written so that all names on the way are short enough; it comes to be `path`.

    Raises:
        OSError: as in the block, naming `path`.
    """
    target = _target(path)
    try:
        with named_errors(path):
            yield target
            if target != path:
                os.replace(target, path)
    finally:
        if target != path:
            target.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    short = short_stem(path.stem)
    return path if short == path.stem else path.with_name(f".{short}.long{path.suffix}")


def remove_parts(paths: Iterable[Path]) -> None:
    """Remove what killed runs left of half-written results; the caller holds the lock of their slide."""
    for path in map(_target, paths):
        name = re.compile(
            rf"\.{re.escape(path.stem)}\.\d+\.part{re.escape(path.suffix)}"
        )  # see `misc.files.atomic_path`
        for part in path.parent.glob(f".{glob.escape(path.stem)}.*.part{path.suffix}"):
            if name.fullmatch(part.name):
                part.unlink(missing_ok=True)
        if path.name.startswith("."):
            path.unlink(missing_ok=True)
