"""Values that a checkpoint can hold and `torch.load(weights_only=True)` reads back."""

from __future__ import annotations

import datetime
from collections import Counter, OrderedDict
from pathlib import PurePath

import numpy as np
import torch

# Exactly these: a subclass (NumPy's float64 is one of float) is saved under its own name, which torch refuses to load.
_ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.Tensor, torch.nn.Parameter, torch.dtype, torch.Size)
_BASES = (int, float, str)
# Dictionaries that schedules rely on (`MultiStepLR` counts in one).
_MAPPINGS = (dict, OrderedDict, Counter)


def plain_scalar(value):
    """Return the plain value of a NumPy number, path, date or subclass of int, float or str; others as they are."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    for base in _BASES:
        if isinstance(value, base) and type(value) not in _ATOMS:
            return base(value)
    return value


def storable(value, name: str):
    """Return `value` with everything in it converted to what a checkpoint can hold.

    Args:
        value: anything; arrays become lists.
        name: what it is, for the message.

    Raises:
        ValueError: a value cannot be converted; the message says where it is.
    """
    value = plain_scalar(value)
    if isinstance(value, np.ndarray):
        return storable(value.tolist(), name)
    if type(value) in _ATOMS:
        return value
    if isinstance(value, dict):
        kind = type(value) if type(value) in _MAPPINGS else dict
        return kind({storable(key, name): storable(entry, f"{name}[{key!r}]") for key, entry in value.items()})
    if isinstance(value, list | tuple | set):
        kind = next(base for base in (list, tuple, set) if isinstance(value, base))
        return kind(storable(entry, f"{name}[{index}]") for index, entry in enumerate(value))
    raise ValueError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which no checkpoint can hold; "
        "write it as numbers, text, lists or dictionaries"
    )
