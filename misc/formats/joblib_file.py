"""Read files of joblib without running code: only numbers, texts, lists, dictionaries and arrays of numbers.

A pickle may call any function, so a file of unknown origin must not be unpickled. This reader accepts four names and
replaces each by a class in this module; it refuses all others. joblib writes an array as a
`NumpyArrayWrapper` in the pickle, and the array's bytes after it.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from misc.machine import check_fits

# Kinds of numbers: truth values, whole and real numbers.
_KINDS = "biuf"


class _DType:
    """Stands for `numpy.dtype`."""

    def __init__(self, text: str, *flags):
        self.text, self.order = str(text), ""

    def __setstate__(self, state: tuple) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "")

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.order + self.text)
        if dtype.kind not in _KINDS:
            raise pickle.UnpicklingError(f"an array of {self.text!r}, not of numbers")
        return dtype


class _Wrapper:
    """Stands for `joblib.numpy_pickle.NumpyArrayWrapper`."""

    def read(self, handle: BinaryIO) -> np.ndarray:
        dtype, shape = self.dtype.dtype(), tuple(int(side) for side in self.shape)
        count = math.prod(shape)
        if min(shape, default=0) < 0:
            raise pickle.UnpicklingError(f"an array of shape {shape}")
        check_fits(count * dtype.itemsize, f"an array of {shape}")
        if getattr(self, "numpy_array_alignment_bytes", None) is not None:
            handle.read(handle.read(1)[0])
        data = handle.read(count * dtype.itemsize)
        if len(data) < count * dtype.itemsize:
            raise EOFError("the file ends inside an array")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if self.order == "F" else "C")


def _scalar(kind: _DType, data: bytes) -> Any:
    return np.frombuffer(data, kind.dtype())[0].item()


class _NdArray:
    """Stands for `numpy.ndarray`, which a wrapper names and nothing makes."""


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Wrapper,
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


class _PlainUnpickler(pickle._Unpickler):
    """The unpickler in Python, since the array's bytes lie in the middle of the pickle."""

    dispatch = pickle._Unpickler.dispatch.copy()
    del dispatch[pickle.BYTEARRAY8[0]]  # a broken file could use up all memory with it; joblib never writes it

    def __init__(self, handle: BinaryIO):
        super().__init__(handle)
        self.handle = handle

    def find_class(self, module: str, name: str):
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read, as it could run any program")
        return _KNOWN[module, name]

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], _DType | _Wrapper):
            raise pickle.UnpicklingError(f"it gives a {type(self.stack[-2]).__name__} a state")
        super().load_build()
        if isinstance(self.stack[-1], _Wrapper):
            self.stack[-1] = self.stack[-1].read(self.handle)

    dispatch[pickle.BUILD[0]] = load_build


def load_plain(path: Path) -> Any:
    """Read a file that `joblib.dump` wrote, not packed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, packed, or holds anything but plain values and arrays of numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with open(path, "rb") as handle:
        if handle.read(1) != pickle.PROTO:
            raise ValueError(f"{path}: no file of joblib, or a packed one; joblib.dump without `compress` is read")
        handle.seek(0)
        try:
            return _PlainUnpickler(handle).load()
        except (pickle.UnpicklingError, EOFError, RecursionError, MemoryError) as error:
            raise ValueError(f"{path}: refused or broken: {error}") from error
        except (AttributeError, TypeError, LookupError, ValueError, AssertionError) as error:
            raise ValueError(f"{path}: broken: {type(error).__name__}: {error}") from error
