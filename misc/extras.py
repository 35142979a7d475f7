"""Optional packages: imported where they are used; an error names a missing one."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

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
