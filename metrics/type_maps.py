"""Types to replace before scoring: presets, and maps from options and files, by name or number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from misc.type_info import TypeInfo, split_types, type_ids

# How types of a truth are merged before scoring: {new type: types of the file}. CoNSeP's seven raw types are 1 other,
# 2 inflammatory, 3 healthy epithelial, 4 malignant epithelial, 5 fibroblast, 6 muscle, 7 endothelial; the networks
# predict 1 miscellaneous, 2 inflammatory, 3 epithelial, 4 spindle-shaped.
MERGES: dict[str, dict[int, tuple[int, ...]]] = {"consep": {3: (3, 4), 4: (5, 6, 7)}}

# {old type, by name or number: new type, by name or number}
TypeMap = Mapping[int | str, int | str]


def read_merge(merge: str) -> TypeMap:
    """Return a preset, or the map in a JSON file `{"new type": [types], ...}`.

    Raises:
        ValueError: there is no such preset and no such file, or the file has another form.
    """
    if merge in MERGES:
        groups = MERGES[merge]
    elif Path(merge).is_file():
        groups = _read_json(merge, '{"new type": [types of the truth], ...}')
    else:
        raise ValueError(f"unknown merge `{merge}`; there is {', '.join(MERGES)}, or give a JSON file")
    try:
        return {old: _one(new) for new, olds in groups.items() for old in map(_one, olds)}
    except (TypeError, ValueError) as error:
        raise ValueError(f'{merge}: expected {{"new type": [types of the truth], ...}}: {error}') from error


def read_type_map(text: str, option: str) -> TypeMap:
    """Return the map in an option: `weak=Positive,3=1`, or a JSON file `{"old type": "new type", ...}`.

    Raises:
        ValueError: `text` is neither; the message names the option.
    """
    if Path(text).is_file():
        pairs = list(_read_json(text, '{"old type": "new type", ...}').items())
    else:
        pairs = [part.split("=") for part in text.split(",")]
    try:
        return {_one(old): _one(new) for old, new in pairs}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{option} takes type=type,... by name or number, or a JSON file; got `{text}`") from error


def resolve(type_map: TypeMap, own: TypeInfo, other: TypeInfo, option: str) -> dict[int, int]:
    """Turn names into ids.

    Args:
        type_map: by names or numbers.
        own: names of the old types.
        other: names of the new types; names that it lacks are looked up in `own`.
        option: that gave the map, for messages.

    Raises:
        ValueError: a name that no type has.
    """
    ids: dict[int, int] = {}
    for old, new in type_map.items():
        try:
            (target,) = type_ids([new], other, option)
        except ValueError as error:
            try:
                (target,) = type_ids([new], own, option)
            except ValueError:
                raise error from None
        ids |= dict.fromkeys(type_ids([old], own, option), target)
    return ids


def apply(types: np.ndarray, ids: Mapping[int, int]) -> np.ndarray:
    """Return an array of types with those of `ids` replaced."""
    result = types.copy()
    for old, new in ids.items():
        result[types == old] = new
    return result


def _one(value) -> int | str:
    (only,) = split_types(str(value))
    return only


def _read_json(path: str, form: str) -> dict:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if isinstance(content, dict):
            return content
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected {form}: {error}") from error
    raise ValueError(f"{path}: expected {form}")
