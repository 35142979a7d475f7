"""What results were made with, and whether a run may keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from misc.files import file_digest
from misc.formats.nuclei_json import read_header
from models.hovernet import edges, post_proc
from models.hovernet.post_proc import PostProc

# Key of the JSON header; its value is what the results depend on.
RUN_KEY = "run"


class OtherRunError(ValueError):
    """Existing results were made with other settings; the message says in one line what differs."""


def post_proc_values(how: PostProc) -> dict[str, Any]:
    """Return what nuclei depend on besides the maps: the constants, which users may edit, and the options.

    Of what is newer than the first results only what differs from the default, so that those still count as done.
    """
    public = {name: value for name, value in (vars(edges) | vars(post_proc)).items() if name[0] != "_"}
    constants = {name: value for name, value in public.items() if name.isupper() and isinstance(value, int | float)}
    if how.edges == post_proc.AXES:
        del constants["FALL_THRESHOLD"]
    options = {name: value for name, value in asdict(how).items() if value != getattr(post_proc.REFERENCE, name)}
    return constants | {"NP_THRESHOLD": options.pop("np_threshold", how.np_threshold)} | options


def digest_if_any(path: Path | None) -> str | None:
    """Return the digest of a file that a run reads beside the slide; `missing` if it is gone, `None` for no path."""
    if not path:
        return None
    return file_digest(path) if path.is_file() else "missing"


def was_made_so(path: Path, asked: Mapping[str, Any]) -> bool | None:
    """Tell whether a JSON file of nuclei has the settings of this run; raises `OtherRunError` where it has others.

    `None` when the file is missing or not complete; `False` when it does not say its settings, as files of the original
    do not: such files are accepted.
    """
    return is_made_so(made_with(path), asked)


def is_made_so(made: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> bool | None:
    """Do the same as `was_made_so`, with the result of `made_with`."""
    if made and made != asked:
        raise OtherRunError(
            f"its results were made with other settings ({differences(made, asked)}): give the same options, "
            "or --overwrite to make them again, or another --output_dir"
        )
    return None if made is None else bool(made)


def made_with(path: Path) -> dict[str, Any] | None:
    """Return what a JSON file of nuclei says it depends on, maybe nothing; `None` if missing or incomplete."""
    try:
        made = read_header(path).get(RUN_KEY)
    except (FileNotFoundError, ValueError):
        return None
    return made if isinstance(made, dict) else {}


def differences(made: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return what differs, in one line."""
    made, asked = _flat(made), _flat(asked)
    names = [name for name in {**asked, **made} if made.get(name) != asked.get(name)]
    return "; ".join(f"{name} {_short(made.get(name))}, now {_short(asked.get(name))}" for name in names)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested dictionaries, so that the message names only the entries that differ."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
