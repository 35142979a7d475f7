"""Zeiss CZI that OpenSlide refuses (JPEG XR, several planes), by region, with pylibCZIrw."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np

from misc.extras import require
from misc.slides.pixels import ImageError, to_rgb

_COLOURS = ("Bgr24", "Bgr48")  # pixel types of stained tissue
_WHITE = (1.0, 1.0, 1.0)  # where nothing was scanned
_MIN_LEVEL_PX = 1024  # longest side of the smallest level; each is half of the one before
_M_UM = 1e6  # um in a metre


class CziSource:
    """Levels of a CZI file, read from its own pyramid; all scenes together.

    Attributes: see `misc.slides.sources`.

    Raises:
        ImageError: its pixels are not RGB.
        ValueError: pylibCZIrw is not installed.
    """

    vendor = "zeiss"
    bounds_xywh = None

    def __init__(self, path: Path):
        czi = require("pylibCZIrw.czi", "czi")
        self._file = czi.CziReader(str(path))
        self._lock = threading.Lock()  # the library does not say that it may be called from several threads
        pixel_type = self._file.pixel_types.get(0)
        if pixel_type not in _COLOURS:
            self.close()
            raise ImageError(f"has pixels of type {pixel_type}; RGB ({', '.join(_COLOURS)}) is read")
        self._corner_xy = (self._file.total_bounding_rectangle.x, self._file.total_bounding_rectangle.y)
        width, height = self._file.total_bounding_rectangle.w, self._file.total_bounding_rectangle.h
        self.sizes_xy = [(width, height)]
        while max(self.sizes_xy[-1]) > _MIN_LEVEL_PX:
            self.sizes_xy.append(tuple(max(side // 2, 1) for side in self.sizes_xy[-1]))
        self.is_deep = pixel_type == "Bgr48"
        depth = self._file.total_bounding_box.get("Z", (0, 1))[1]
        self.notes = [f"holds {depth} planes of focus; the first is read"] if depth > 1 else []
        document = self._file.metadata.get("ImageDocument", {}).get("Metadata", {})
        self.mpp_xy, self.mpp_from = _mpp(document), "the CZI metadata"
        self.power = _power(document)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region that lies inside the level, (height, width, 3) uint8.

        The library skips pixels where a file has no pyramid, so a level is averaged from twice its resolution.
        """
        scale = 2**level
        left, top = self._corner_xy[0] + x * scale, self._corner_xy[1] + y * scale
        roi = (left, top, width * scale, height * scale)
        with self._lock:
            bgr = self._file.read(roi=roi, plane={"C": 0}, zoom=min(2 / scale, 1.0), background_pixel=_WHITE)
        if level:
            bgr = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA)
        return to_rgb(np.ascontiguousarray(bgr[..., ::-1]))

    def close(self) -> None:
        self._file.close()


def _mpp(document: dict) -> tuple[float, float] | None:
    """Return um a pixel along x and y, or `None` where the file does not say it."""
    try:
        items = document["Scaling"]["Items"]["Distance"]
        metres = {item["@Id"]: float(item["Value"]) for item in items}
        mpp = metres["X"] * _M_UM, metres["Y"] * _M_UM
    except (KeyError, TypeError, ValueError):
        return None
    return mpp if min(mpp) > 0 else None


def _power(document: dict) -> float | None:
    """Return the power of the objective, or `None` where the file does not say it."""
    try:
        objective = document["Information"]["Instrument"]["Objectives"]["Objective"]
        return float((objective[0] if isinstance(objective, list) else objective)["NominalMagnification"])
    except (KeyError, TypeError, ValueError, IndexError):
        return None
