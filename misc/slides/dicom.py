"""DICOM slides: files (instances) of one series, each a level of the slide, or its label, overview or thumbnail."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_MAGIC, _MAGIC_AT = b"DICM", 128
_KIND_AT = 2  # third value of ImageType: VOLUME, LABEL, OVERVIEW or THUMBNAIL
_VOLUME = b"VOLUME"
PATTERN = "*.[dD][cC][mM]"  # names of instances, where a folder is looked through


@dataclass(frozen=True)
class Instance:
    """One file of a series.

    Attributes:
        series: its SeriesInstanceUID.
        is_volume: whether it is a level of the slide; `True` also where it does not say, so that opening it reports the
            reason.
        width: of the level, px.
    """

    path: Path
    series: bytes
    is_volume: bool
    width: int


def read_instance(path: Path) -> Instance | None:
    """Return the series data of a file, or `None` where it is not a DICOM file or damaged."""
    try:
        stat = path.stat()
        return _read_instance(path, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=1 << 14)
def _read_instance(path: Path, size: int, mtime_ns: int) -> Instance | None:
    with open(path, "rb") as handle:
        if handle.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] != _MAGIC:
            return None
    import pydicom

    names = ["ImageType", "SeriesInstanceUID", "TotalPixelMatrixColumns"]
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=names)
        # raw bytes: converting them would log a warning for each value that the standard forbids
        kind, series, width = (header.get_item(name).value if name in header else b"" for name in names)
    except Exception:  # a damaged header can raise any error in pydicom; OpenSlide reports the reason
        return None
    kinds = kind.split(b"\\")
    is_volume = len(kinds) <= _KIND_AT or kinds[_KIND_AT].strip() == _VOLUME
    return Instance(path, series.strip(b"\0 "), is_volume, int.from_bytes(width, "little"))


def group_series(files: Iterable[Path]) -> list[list[Instance]]:
    """Return the instances among files by folder and series, each group with its largest volume first.

    A group may have no volume, for example if a scanner writes labels as their own series. Files that are not DICOM, or
    that do not name their series, are in no group.
    """
    groups: dict[tuple[Path, bytes], list[Instance]] = {}
    for path in files:
        if (instance := read_instance(path)) and instance.series:
            groups.setdefault((path.parent, instance.series), []).append(instance)
    return [sorted(group, key=lambda i: (not i.is_volume, -i.width, i.path)) for group in groups.values()]


def series_in(folder: Path) -> list[list[Instance]]:
    """Return the series of a folder that are slides, see `group_series`."""
    return [group for group in group_series(sorted(folder.glob(PATTERN))) if group[0].is_volume]


def series_of(path: Path) -> list[Path]:
    """Return the files that belong to the slide of one file, the largest level first; itself if it is alone."""
    own = read_instance(path)
    group = next((group for group in series_in(path.parent) if own in group), None) if own else None
    return [instance.path for instance in group] if group else [path]
