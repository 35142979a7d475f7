"""OME-Zarr (OME-NGFF 0.4 and 0.5), a folder, by region, with zarr: one image, three channels, its own pyramid.

https://ngff.openmicroscopy.org/0.5/. Of folders as bioformats2raw writes them (images `0`, `1`, ...) the first image
is read; of several times or planes of focus the first one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from misc.extras import require
from misc.slides.pixels import ImageError, to_rgb

SUFFIX = ".zarr"
# Where the attributes of a group are, by version of Zarr: 0.4 is on Zarr 2, 0.5 on Zarr 3.
_ATTRIBUTES = (".zattrs", "zarr.json")
_ARRAYS = (".zarray", "zarr.json")
_SERIES = "bioformats2raw.layout"
_UM = {
    "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
    "inch": 25400.0,
}  # fmt: skip
_CHANNELS = 3


def is_ome_zarr(path: Path) -> bool:
    """Tell whether a path is a folder that says that it is an OME-Zarr image."""
    return path.suffix.lower() == SUFFIX and path.is_dir() and not {"multiscales", _SERIES}.isdisjoint(_ome(path))


def ome_zarr_files(path: Path) -> list[Path]:
    """Return the metadata files of an image, without the many thousand files of its pixels."""
    image = _image(path)
    levels = [image / str(level["path"]) for level in _multiscale(image)["datasets"]]
    files = [path / name for name in _ATTRIBUTES] + [level / name for level in levels for name in _ARRAYS]
    return [file for file in files if file.is_file()]


class OmeZarrSource:
    """Levels of an OME-Zarr image.

    Attributes: see `misc.slides.sources`.

    Raises:
        ImageError: it is damaged, or has another number of channels than three.
        ValueError: zarr is not installed.
    """

    vendor = power = bounds_xywh = None
    mpp_from = "the OME-Zarr metadata"

    def __init__(self, path: Path):
        zarr = require("zarr", "zarr")
        image = _image(path)
        multiscale = _multiscale(image)
        self._axes = [axis["name"] for axis in multiscale["axes"]]
        group = zarr.open_group(image, mode="r", use_consolidated=False)
        self._levels = [group[level["path"]] for level in multiscale["datasets"]]
        sizes = dict(zip(self._axes, self._levels[0].shape, strict=True))
        if sizes.get("c") != _CHANNELS or not {"x", "y"} <= sizes.keys():
            raise ImageError(f"has the axes {sizes}; x, y and {_CHANNELS} channels c are read")
        x, y = self._axes.index("x"), self._axes.index("y")
        self.sizes_xy = [(level.shape[x], level.shape[y]) for level in self._levels]
        self.is_deep = self._levels[0].dtype.itemsize > 1
        more = [f"{size} along {name}" for name, size in sizes.items() if name not in "cyx" and size > 1]
        self.notes = [f"holds {' and '.join(more)}; the first is read"] if more else []
        self.mpp_xy = _mpp(multiscale)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region that lies inside the level, (height, width, 3) uint8."""
        where = {"x": slice(x, x + width), "y": slice(y, y + height), "c": slice(None)}
        samples = self._levels[level][tuple(where.get(name, 0) for name in self._axes)]
        kept = [name for name in self._axes if name in where]
        return to_rgb(np.ascontiguousarray(samples.transpose([kept.index(name) for name in "yxc"])))

    def close(self) -> None:
        """Nothing stays open between reads."""


def _ome(folder: Path) -> dict:
    """Return the OME attributes of a group; none where there are none, or they are broken."""
    for name in _ATTRIBUTES:
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            found = found.get("attributes", {}) if name == "zarr.json" else found
            return found.get("ome", found)
        except (OSError, ValueError, AttributeError):
            continue
    return {}


def _image(path: Path) -> Path:
    """Return the folder of the image: that itself, or its first series."""
    return path if "multiscales" in _ome(path) else path / "0"


def _multiscale(image: Path) -> dict:
    try:
        return _ome(image)["multiscales"][0]
    except (KeyError, IndexError) as error:
        raise ImageError("is an OME-Zarr folder without an image (no `multiscales`)") from error


def _mpp(multiscale: dict) -> tuple[float, float] | None:
    """Return um a pixel along x and y, or `None` where they are not said, or not in units of length."""
    axes = multiscale["axes"]
    scale = np.array([_UM.get(axis.get("unit"), np.nan) for axis in axes])
    for said in (multiscale["datasets"][0], multiscale):
        for step in said.get("coordinateTransformations", ()):
            if step["type"] == "scale":
                scale = scale * step["scale"]
    found = dict(zip((axis["name"] for axis in axes), scale.tolist(), strict=True))
    return (found["x"], found["y"]) if found["x"] > 0 and found["y"] > 0 else None
