"""What the network reads: an image, or a slide, at the network's plane."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from infer.grid import Box, Planes
from misc.slides.handler import FileHandler, get_file_handler, read_reflect, reflected
from misc.slides.images import read_image, resize

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
# Largest magnification of the output plane; both planes have it with checkpoints that do not say theirs.
DEFAULT_MAG = 40.0
# A level is read without resizing if its pixel size differs from the network's by this share at most: scanners' 0.4990
# and 0.5040 um/px are 0.5, and such a small resize only blurs.
SAME_MPP_SHARE = 0.02


def image_scale(mpp: float, model_mpp: float) -> float:
    """Return px of the network's plane a px of an image; both in um per px."""
    return 1.0 if abs(mpp / model_mpp - 1) <= SAME_MPP_SHARE else mpp / model_mpp


def network_shape(shape_yx: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the size an image of `shape_yx` px has for the network; `scale` = its mpp / the network's."""
    return max(round(shape_yx[0] * scale), 1), max(round(shape_yx[1] * scale), 1)


class ImageSource:
    """An image, (H, W, 3) uint8 RGB, in its own plane and the network's; `scale` is its mpp / the network's."""

    def __init__(self, image: np.ndarray, scale: float = 1.0):
        self.image = image
        self.planes = Planes(network_shape(image.shape[:2], scale), tuple(image.shape[:2]))
        self._net = resize(image, self.planes.net_yx)

    @classmethod
    def open(cls, path: Path, scale: float) -> ImageSource:
        """Read a file."""
        return cls(read_image(path), scale)

    def read(self, box: Box) -> np.ndarray:
        """Return a box of the network's plane, (h, w, 3) uint8, reflected where it lies outside."""
        y0, x0, y1, x1 = box
        rows = reflected(y0, y1 - y0, self.planes.net_yx[0])
        cols = reflected(x0, x1 - x0, self.planes.net_yx[1])
        return self._net[rows][:, cols]


class SlideSource:
    """An open slide, read by several threads; a failed read is tried once more after the slide is opened again.

    So a short failure of a network disk, or of another thread (OpenSlide then refuses all reads by the same handle),
    does not end a run of hours.

    Args:
        mpp, mag: of level 0, where the file has none or a wrong one.
        model_mpp: um/px that the network was trained at; `None` where the checkpoint does not say it.
        proc_mag: magnification of the output plane, `out_mag`; of the network's, too, where `model_mpp` is `None`.

    Raises:
        SlideError: it cannot be opened, or does not say its resolution.
    """

    def __init__(
        self, path: Path, mpp: float | None, mag: float | None, model_mpp: float | None, proc_mag: float | None
    ):
        self._model_mpp = model_mpp
        self._lock = threading.Lock()
        self._handlers: list[FileHandler] = []  # the last one is in use; threads may still use earlier ones
        handler = get_file_handler(path, mpp=mpp, mag=mag)
        try:
            handler.get_dimensions(read_mag=1)  # raises an error where the resolution is missing
            base_mag = handler.metadata["base_mag"]
            self.out_mag = proc_mag or (DEFAULT_MAG if model_mpp is None else min(base_mag, DEFAULT_MAG))
            handler.prepare_reading(**self._plane_of(handler))
            out_w, out_h = handler.get_dimensions(read_mag=self.out_mag).tolist()
        except BaseException:
            handler.close()
            raise
        self.planes = Planes(handler.shape_yx, (out_h, out_w))
        self._handlers.append(handler)

    def _plane_of(self, handler: FileHandler) -> dict[str, float]:
        """Return the arguments that ask the handler for the network's plane."""
        if self._model_mpp is None:
            return {"read_mag": self.out_mag}
        base_mpp, base_mag = float(handler.metadata["base_mpp"][0]), handler.metadata["base_mag"]
        levels = [base_mpp * base_mag / mag for mag in handler.metadata["available_mag"]]
        nearest = min(levels, key=lambda mpp: abs(mpp / self._model_mpp - 1))
        near = abs(nearest / self._model_mpp - 1) <= SAME_MPP_SHARE
        return {"read_mpp": handler.metadata["base_mpp"] * (nearest / base_mpp) if near else self._model_mpp}

    def close(self) -> None:
        """Close the slide."""
        for handler in self._handlers:
            handler.close()

    @property
    def handler(self) -> FileHandler:
        return self._handlers[-1]

    @property
    def scale(self) -> float:
        """Level-0 px a px of the output plane."""
        return self.handler.metadata["base_shape"].tolist()[0] / self.planes.out_yx[1]

    def enlarged(self) -> str | None:
        """Return a warning where the slide is enlarged for the network, else `None`."""
        factor = self.planes.net_yx[1] / self.handler.metadata["base_shape"].tolist()[0]
        if factor <= 1 + SAME_MPP_SHARE:
            return None
        data = self.handler.metadata
        scanned, mpp = data["base_mag"], float(data["base_mpp"][0])
        asked = f"{self._model_mpp:g} um/px" if self._model_mpp else f"{self.out_mag:g}x"
        way_out = "a network for that resolution" if self._model_mpp else f"--proc_mag={scanned:g}"
        return (
            f"was scanned at {scanned:g}x ({mpp:.4g} um/px), the network reads {asked}: it is enlarged {factor:.3g} "
            f"times, which adds no detail; {way_out} reads it as it is"
        )

    def read(self, box: Box) -> np.ndarray:
        """Return a box of the network's plane, (h, w, 3) uint8, reflected where it lies outside."""
        y0, x0, y1, x1 = box
        return self.use(lambda handler: read_reflect(handler, y0, x0, y1 - y0, x1 - x0))

    def use(self, function: Callable[[FileHandler], _T]) -> _T:
        """Call a function on the open slide and return its result; several threads may do so.

        Raises:
            SlideError: it fails twice, or the slide has changed: results must not mix two slides.
        """
        handler = self.handler
        try:
            result = function(handler)
        except Exception as error:
            logger.warning("%s; opening it again for a second try", error)
            with self._lock:
                handler = handler.reopen()
                self._handlers.append(handler)
            result = function(handler)
        handler.check_unchanged()
        return result
