"""The slides in a folder: which files they are made of, and their names."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from misc.files import check_unique_stems, full_stem, list_files, printable, unusable_name
from misc.slides.dicom import PATTERN, group_series, series_in, series_of
from misc.slides.ome_zarr import SUFFIX, is_ome_zarr, ome_zarr_files
from misc.slides.sources import MIRAX_SUFFIX, SLIDE_SUFFIXES, SlideError, is_slide, open_source


@dataclass
class FoundSlides:
    """The content of a folder.

    Attributes:
        slides: files, and folders that are one DICOM slide or OME-Zarr; all of different names, see `slide_name`.
        unusable: paths that look like slides but cannot be opened, and why.
        others: files that are not slides.
    """

    slides: list[Path] = field(default_factory=list)
    unusable: dict[Path, str] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)


def find_slides(
    folder: Path, pattern: str = "*", recursive: bool = False, leave_out: Callable[[Path], bool] = lambda path: False
) -> FoundSlides:
    """Look through a folder.

    The DICOM files of one series are one slide, also in a sub-folder; its labels, overviews and thumbnails are not
    slides.

    Args:
        folder: the folder.
        pattern: shell pattern that a file's name must match.
        recursive: look into sub-folders too.
        leave_out: tells which files to ignore.

    Raises:
        FileNotFoundError: `folder` is none.
        ValueError: two slides that can be opened have the same name.
    """
    found, (slides, labels) = FoundSlides(), _candidates(Path(folder), pattern, recursive)
    for path in slides:
        if leave_out(path):
            continue
        if path.is_dir() or is_slide(path):
            if reason := unusable_name(path):
                found.unusable[path] = f"{printable(path)}: {reason}"
            else:
                found.slides.append(path)
        elif reason := _unreadable(path):
            found.unusable[path] = reason
        else:
            found.others.append(path)
    found.others += labels
    found.unusable |= _no_files(Path(folder), pattern, recursive, found.slides)
    _sort_out_names(found)
    return found


def slides_called(name: str, folder: Path) -> list[Path]:
    """Return the paths of a folder that may be the slide of that name; unlike `find_slides`, opens no other file."""
    return [path for path in _candidates(Path(folder))[0] if full_stem(path) == name]


def slide_files(path: Path) -> list[Path]:
    """Return the files that a slide is made of, itself first where it is a file; of OME-Zarr those without pixels."""
    if is_ome_zarr(path):
        return ome_zarr_files(path)
    if path.is_dir():
        return [instance.path for series in series_in(path) for instance in series]
    if path.suffix.lower() == MIRAX_SUFFIX:
        return [path, *sorted(path.with_suffix("").glob("*"))]
    return series_of(path)


def _candidates(folder: Path, pattern: str = "*", recursive: bool = False) -> tuple[list[Path], list[Path]]:
    """Return possible slides, with one path per DICOM series or OME-Zarr; and DICOM files that are not levels."""
    files = [path for path in list_files(folder, pattern, recursive) if not _in_zarr(path, folder)]
    if not recursive:  # one folder a slide, as viewers and archives export DICOM
        files += [path for path in sorted(folder.glob(f"[!.]*/{pattern}")) if path.match(PATTERN) and path.is_file()]
    groups = group_series(files)
    of_series = {instance.path for group in groups for instance in group}
    slides = [_series_path(group[0].path, folder) for group in groups if group[0].is_volume]
    labels = [instance.path for group in groups if not group[0].is_volume for instance in group]
    rest = [path for path in files if path not in of_series and (recursive or path.parent == folder)]
    found = folder.rglob(pattern) if recursive else folder.glob(pattern)
    zarr = [path for path in found if path.name[0] != "." and is_ome_zarr(path) and not _in_zarr(path, folder)]
    return sorted([*slides, *rest, *zarr]), labels


def _in_zarr(path: Path, folder: Path) -> bool:
    """Tell whether a path is part of a Zarr of a folder."""
    return any(name.lower().endswith(SUFFIX) for name in path.relative_to(folder).parts[:-1])


def _series_path(first: Path, folder: Path) -> Path:
    """Return the path, and so the name, of a DICOM slide: its folder's where it has one for itself, else its file's."""
    return first.parent if first.parent != folder and len(series_in(first.parent)) == 1 else first


def _no_files(folder: Path, pattern: str, recursive: bool, slides: list[Path]) -> dict[Path, str]:
    """Return paths named like slides that are not files; with `recursive`, folders do not count."""
    search = folder.rglob if recursive else folder.glob
    named = [path for path in search(pattern) if path.suffix.lower() in SLIDE_SUFFIXES and path.name[0] != "."]
    reasons = {}
    for path in sorted(set(named) - set(slides)):
        if path.is_dir() and not recursive:
            reasons[path] = f"{printable(path)}: is a folder; --recursive looks into it"
        elif path.is_symlink() and not path.exists():
            reasons[path] = f"{printable(path)}: is a link to {printable(os.readlink(path))}, which is not there"
    return reasons


def _unreadable(path: Path) -> str | None:
    try:
        with open(path, "rb") as handle:
            handle.read(1)
    except OSError as error:
        return f"{printable(path)}: cannot be read ({error.strerror})"
    return None


def _sort_out_names(found: FoundSlides) -> None:
    """Refuse two slides of one name; a slide goes before broken files of its name."""
    by_name: dict[str, list[Path]] = {}
    for path in found.slides:
        by_name.setdefault(full_stem(path), []).append(path)
    for paths in by_name.values():
        reasons = {path: reason for path in paths if len(paths) > 1 and (reason := _why_closed(path))}
        if len(reasons) == len(paths):
            del reasons[paths[0]]  # stays, and is reported when it is opened, as any other
        found.unusable |= reasons
    found.slides = [path for path in found.slides if path not in found.unusable]
    check_unique_stems(found.slides)


def _why_closed(path: Path) -> str | None:
    try:
        open_source(path).close()
    except SlideError as error:
        return str(error)
    return None
