"""One slide, read by several threads: a picture is decoded once for all, and neighbours share what is cached."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from infer.grid import Box
from misc.slides.handler import FileHandler, read_reflect

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class SlideReader:
    """Reads from an open slide; what fails is tried once more with the slide opened anew.

    A network disk that is away for a moment, or another thread's failure (after one, OpenSlide refuses to go on with
    that handle), does not end a run of hours.

    Args:
        open_handler: opens the slide, prepared for reading.

    Raises:
        SlideError: it cannot be opened.
    """

    def __init__(self, open_handler: Callable[[], FileHandler]):
        self._open = open_handler
        self._handlers = [open_handler()]  # the last one is in use, earlier ones may be in the hands of a thread
        self._lock = threading.Lock()

    def __enter__(self) -> SlideReader:
        return self

    def __exit__(self, *_) -> None:
        for handler in self._handlers:
            handler.close()

    @property
    def handler(self) -> FileHandler:
        return self._handlers[-1]

    def read(self, box: Box) -> np.ndarray:
        """Return (y1 - y0, x1 - x0, 3) uint8 of a box of the prepared plane, reflected where it lies outside.

        Raises:
            SlideError: it cannot be read, twice.
        """
        y0, x0, y1, x1 = box
        return self.use(lambda handler: read_reflect(handler, y0, x0, y1 - y0, x1 - x0))

    def use(self, function: Callable[[FileHandler], _T]) -> _T:
        """Return what a function makes of the open slide; may be called from several threads."""
        try:
            return function(self.handler)
        except Exception as error:
            logger.warning("%s; opening it anew and trying once more", error)
        fresh = self._open()
        try:
            result = function(fresh)
        except BaseException:
            fresh.close()
            raise
        with self._lock:
            self._handlers.append(fresh)
        return result
