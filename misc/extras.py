"""Packages that only some users need: imported where they are used, and asked for by name where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import a package of an extra.

    Args:
        module: its name, `pyarrow.parquet`.
        extra: the extra it belongs to; `requirements-<extra>.txt` installs it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{module.split('.')[0]} is not installed ({error}); pip install -r requirements-{extra}.txt"
        ) from error
