"""Label files: `.mat` (version 5 to 7.3) and `.npy`, checked for size before they are read.

Our files may have two more keys: the names of the types, and a mark for predictions. A "truth" with this mark is a
prediction, given by mistake.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from misc.formats.mat_sizes import check_unpacked
from misc.formats.nuclei_json import types_from_header, types_to_header
from misc.machine import TooLargeError, check_fits
from misc.type_info import TypeInfo

# Our keys: the file holds predictions (value: their source); names and colours of the types, as JSON.
PREDICTION_KEY, TYPES_KEY = "predicted_by", "type_info"
_MADE_BY = "HoVer-Net toolkit"
# Version numbers in scipy: 5 to 7, which may compress, and 7.3, which is HDF5.
_COMPRESSING, _HDF5 = 1, 2
# Bytes of one element, by MATLAB's classes; the others are no larger.
_LARGEST_ELEMENT = 8
# All arrays are copied once in the conversion to whole numbers.
_COPIES = 2
# MATLAB's classes that are read; cells, structures, objects and sparse arrays do not say how large they are.
_READ_CLASSES = frozenset("int8 uint8 int16 uint16 int32 uint32 int64 uint64 single double logical char".split())


def prediction_keys(type_info: TypeInfo | None) -> dict[str, str]:
    """Return what a `.mat` of predictions holds besides its maps and lists."""
    return {PREDICTION_KEY: _MADE_BY} | ({} if type_info is None else {TYPES_KEY: types_text(type_info)})


def types_text(type_info: TypeInfo) -> str:
    """Return names and colours of types as the text that `TYPES_KEY` holds."""
    return json.dumps(types_to_header(type_info))


def says_prediction(path: str | Path) -> bool:
    """Whether a label file is marked as a prediction; False for a broken one."""
    try:
        return any(name == PREDICTION_KEY for name, *_ in scipy.io.whosmat(path))
    except Exception:  # a damaged file, or one of another kind, can make scipy raise almost anything
        return False


def types_of(content: dict) -> TypeInfo | None:
    """Return names and colours of the types that a label file gives, or `None`."""
    if TYPES_KEY not in content:
        return None
    try:
        return types_from_header({"types": json.loads(str(np.asarray(content[TYPES_KEY]).ravel()[0]))})
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{TYPES_KEY} is not valid: {error}") from error


def read_label(path: str | Path) -> dict[str, Any]:
    """Read a label file.

    Returns:
        Arrays by key, as MATLAB names them; of a `.npy` (H, W) or (H, W, 2) array `inst_map`, and `type_map`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is larger than the free memory. The line does not name the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such label: {path}")
    if path.suffix.lower() == ".npy":
        return _read_npy(path)
    try:
        version = scipy.io.matlab.matfile_version(path)[0]
        if version != _HDF5:
            return _read_mat(path, version)
    except TooLargeError:
        raise
    except Exception as error:  # a damaged file can make scipy raise almost anything
        raise ValueError(f"is no readable .mat file ({error})") from error
    return _read_hdf5(path)


def _read_mat(path: Path, version: int) -> dict[str, Any]:
    """Read numbers and text of a file of MATLAB 4 to 7; other classes are left out."""
    if version == _COMPRESSING:
        check_unpacked(path)
    listed = [entry for entry in scipy.io.whosmat(path) if entry[2] in _READ_CLASSES]
    elements = sum(int(np.prod(shape, dtype=np.float64)) for _, shape, _ in listed)
    check_fits(elements * _LARGEST_ELEMENT * _COPIES, "what it declares")
    names = [name for name, *_ in listed]
    content = scipy.io.loadmat(path, variable_names=names)
    return {key: value for key, value in content.items() if key in names}


def _read_npy(path: Path) -> dict[str, np.ndarray]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"is no readable .npy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise ValueError("is an archive of arrays (.npz), not one array")
    if array.ndim == 3 and array.shape[2] in (1, 2):
        planes = [array[..., i] for i in range(array.shape[2])]
    elif array.ndim == 2:
        planes = [array]
    else:
        raise ValueError(f"has shape {array.shape}; (H, W) instances or (H, W, 2) with types behind them are needed")
    check_fits(array.nbytes * _COPIES, "what it declares")
    return {key: np.array(plane) for key, plane in zip(("inst_map", "type_map"), planes, strict=False)}


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Read MATLAB 7.3, which is HDF5 with the axes in the other order; cells and structures are left out."""
    import h5py  # here, since few labels need it

    try:
        with h5py.File(path, "r") as file:
            arrays = {key: item for key, item in file.items() if isinstance(item, h5py.Dataset)}
            arrays = {key: item for key, item in arrays.items() if item.dtype.kind in "biuf"}
            check_fits(sum(map(_stored_bytes, arrays.values())) * _COPIES, "what it declares")
            return {key: _matlab_array(item) for key, item in arrays.items()}
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"is a broken MATLAB v7.3 file ({error}); save it with `save -v7`") from error


def _stored_bytes(item) -> int:
    """Return the bytes of an HDF5 array, or of one of its chunks where that is larger: chunks are unpacked whole."""
    return max(item.size, math.prod(item.chunks or ())) * item.dtype.itemsize


def _matlab_array(item) -> np.ndarray:
    if item.attrs.get("MATLAB_empty"):
        return np.zeros(tuple(int(n) for n in item[()]))
    if item.attrs.get("MATLAB_class") == b"char":
        return np.array(["".join(map(chr, item[()].ravel()))])
    return item[()].T


def types_by_id(content: dict, ids: np.ndarray, type_key: str, uid_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a list of types, and the ids of the instances that it belongs to.

    Args:
        content: the arrays of the label file.
        ids: (N,) of the instances in the map, rising: what the types belong to where there is no list of ids.
        type_key, uid_key: names of the two lists.

    Returns:
        (M,) ids and (M,) types, in the order of the file.

    Raises:
        ValueError: the lists do not fit each other or the map.
    """
    types = np.asarray(content[type_key]).ravel()
    uids = np.asarray(content[uid_key]).ravel() if uid_key in content else ids
    if len(uids) != len(types):
        raise ValueError(f"has {len(types)} types in {type_key} for {len(uids)} instances")
    unknown = np.setdiff1d(ids, uids)
    if len(unknown):
        raise ValueError(f"has no type for instance {unknown[0]} ({len(unknown)} such)")
    return uids.astype(np.int64), types


def check_points(points: np.ndarray, key: str, nr: int) -> np.ndarray:
    """Return a list of points as (N, 2) float32.

    Args:
        points: as the file has it.
        key: its name.
        nr: how many there must be.

    Raises:
        ValueError: another shape; (2, N) read as (N, 2) would mix the coordinates of different nuclei.
    """
    points = np.asarray(points)
    if points.size == 0 and nr == 0:
        return np.zeros((0, 2), np.float32)
    if points.shape != (nr, 2):
        turned = "; it is transposed" if points.shape == (2, nr) else ""
        raise ValueError(f"{key} has shape {points.shape} for {nr} nuclei; ({nr}, 2), x then y, is needed{turned}")
    return points.astype(np.float32)


def keys_of(content: Collection[str]) -> str:
    """Describe the content of a file, for messages."""
    return ", ".join(sorted(content)) or "nothing"
