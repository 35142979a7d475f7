"""Files of slide runs: which of a folder are slides, the names of what is written, and what killed runs left."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from infer.options import WsiOptions
from misc.files import printable
from misc.slides import folder
from misc.slides.folder import FoundSlides

logger = logging.getLogger(__name__)

# Bytes of a name that locks, temporary files and spools take over from the slide's; a file system allows 255 in all.
MAX_STEM_BYTES = 150
_DIGEST_LENGTH = 16


# ---------------------------------------------------------------------------------------------- input


def find_slides(options: WsiOptions) -> FoundSlides:
    """Look through the input folder; what is no slide is listed in the log.

    Raises:
        FileNotFoundError: there is none.
        ValueError: two that can be opened have the same stem.
    """

    def is_result(path: Path) -> bool:  # a thumbnail or a mask of ours, when the output folder lies in the input folder
        return path.parent.name in ("thumb", "mask") and path.parent.parent.resolve() == options.output_dir.resolve()

    found = folder.find_slides(options.input_dir, options.pattern, options.recursive, leave_out=is_result)
    if found.others:
        names = ", ".join(printable(path.name) for path in found.others)
        logger.info("%d files are no slides and are passed over: %s", len(found.others), names)
    if not found.slides and not found.unusable:
        raise FileNotFoundError(f"no slide matches {options.pattern} in {options.input_dir}")
    return found


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
