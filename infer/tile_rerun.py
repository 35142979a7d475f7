"""What an earlier run left of a tile: whether it may stay, and what of it is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from misc.nuclei_json import read_header

from .tile_output import TileSpec, holds_raw

# Key of the JSON header that holds what the results depend on.
RUN_KEY = "run"


class OtherRunError(ValueError):
    """The results that are there were made otherwise; the message is one line that says how."""


def missing_files(spec: TileSpec, name: str) -> frozenset[str]:
    """Return which files of a tile have to be written, as kinds of `TileSpec.paths`.

    All of them, `json` among them, where the network has to run; others alone where the JSON file is enough for them.
    Files that do not say how they were made (of the original, of older versions) count as made by this run.

    Raises:
        OtherRunError: the results there are not those that this run would make.
    """
    paths = spec.paths(name)
    everything = frozenset(paths)
    try:
        made = read_header(paths["json"]).get(RUN_KEY)
    except (OSError, ValueError):  # not there, or not whole
        return everything
    known = isinstance(made, dict)
    if known and made != spec.header[RUN_KEY]:
        raise OtherRunError(
            f"its results were made otherwise ({_differences(made, spec.header[RUN_KEY])}): "
            "--overwrite redoes them, or give another --output_dir"
        )
    missing = frozenset(kind for kind, path in paths.items() if not path.exists())
    lacks_raw = known and spec.save_raw_map and not holds_raw(paths["mat"])
    return everything if "mat" in missing or lacks_raw else missing


def _differences(made: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    names = [name for name in {**asked, **made} if made.get(name) != asked.get(name)]
    return "; ".join(f"{name} {made.get(name)}, now {asked.get(name)}" for name in names)
