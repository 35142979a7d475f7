"""NumPy's numbers in a checkpoint, as people keep their scores beside the weights.

`torch.load` refuses them, since NumPy's own functions would have to be called with what a stranger's file says. They
are read by these stand-ins instead, which make plain numbers of bytes and nothing else.
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
    """Stands in for the function that makes a scalar of NumPy's; `None` for what is no number."""
    return np.frombuffer(data, kind.order + kind.code)[0].item() if _NUMBER.fullmatch(kind.code) else None


def numpy_scalars() -> AbstractContextManager:
    """Return a context in which `torch.load(weights_only=True)` reads NumPy's scalars, as plain numbers."""
    scalar = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")  # of NumPy 2 and 1
    return torch.serialization.safe_globals([(_Kind, "numpy.dtype"), *((_number, name) for name in scalar)])
