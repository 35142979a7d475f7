"""Show pictures in a window, or write them to a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from misc.files import atomic_path

_ESCAPE = 27
_QUIT = (ord("q"), _ESCAPE)


def save_picture(path: str | Path, rgb: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture; its suffix chooses the format.

    Raises:
        ValueError: OpenCV cannot write this format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.haveImageWriter(str(path)):
        raise ValueError(f"cannot write {path}: end its name in .png or .jpg")
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))


def show_pictures(pictures: Iterable[np.ndarray], title: str) -> None:
    """Show (H, W, 3) uint8 RGB pictures one after the other; any key goes on, q or Escape ends.

    Raises:
        ValueError: there is no screen.
    """
    # checked first, since Qt ends the process if there is none
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ValueError("there is no screen to open a window on; name a file by --view_path=FILE.png")
    cv2.namedWindow(title, cv2.WINDOW_NORMAL)
    for rgb in pictures:
        cv2.imshow(title, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        if cv2.waitKey(0) in _QUIT:
            break
    cv2.destroyAllWindows()
