"""NumPy scalars in a checkpoint, such as scores that people save beside the weights.

`torch.load` refuses them, since it would have to call NumPy's functions with arguments from an untrusted file. These
stand-ins only turn bytes into plain numbers.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager

import numpy as np
import torch

# NumPy's codes of plain numbers: float, integer, unsigned of 1 to 8 bytes, and bool.
_NUMBER = re.compile(r"[fiu][1248]|b1")


class _Kind:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str, *_):
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


def _number(kind: _Kind, data: bytes) -> float | int | bool | None:
    """Stands in for NumPy's function that makes a scalar; `None` for anything but a number."""
    return np.frombuffer(data, kind.order + kind.code)[0].item() if _NUMBER.fullmatch(kind.code) else None


def numpy_scalars() -> AbstractContextManager:
    """Return a context in which `torch.load(weights_only=True)` reads NumPy's scalars, as plain numbers."""
    scalar = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")  # of NumPy 2 and 1
    return torch.serialization.safe_globals([(_Kind, "numpy.dtype"), *((_number, name) for name in scalar)])
