"""Names and colours of nuclear types: `type_info.json`, and a readable palette where there is none.

The file is the only place for names and colours of types:
`{"1": ["neopla", [255, 0, 0]], ...}`, colours red, green, blue, 0-255.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

RGB = tuple[int, int, int]
TypeInfo = dict[int | None, tuple[str, RGB]]

# In the type channel of a patch: a nucleus of unknown type. It is the largest uint8, so that patches stay uint8, and no
# network predicts it.
UNKNOWN_TYPE = 255

# Okabe and Ito's colours for readers of any colour vision, reordered so that neighbours differ most on
# pink tissue; type 0 is "no type was found".
_PALETTE: tuple[RGB, ...] = (
    (230, 30, 30),
    (0, 158, 115),
    (0, 90, 220),
    (240, 228, 66),
    (230, 159, 0),
    (86, 220, 233),
    (204, 60, 200),
)
_NO_LABEL: RGB = (0, 0, 0)
# Type ids are int32 in label maps.
MAX_TYPE_ID = 2**31 - 1
# Names of stained types contain one of these words, and no word that negates it.
_POSITIVE = re.compile(r"positive|weak|moderate|strong", re.IGNORECASE)
_NOT_POSITIVE = re.compile(r"negative|\b(non|not|un)[\W_]*(positive|stained)", re.IGNORECASE)
# Untyped nuclei: bright green, a colour that no stain here has.
UNTYPED: tuple[str, RGB] = ("nucleus", (0, 230, 0))


def default_type_info(nr_types: int | None) -> TypeInfo:
    """Return names and colours for a network without a `type_info.json`.

    Args:
        nr_types: number of types with the background, or `None` for an untyped network.
    """
    info: TypeInfo = {None: UNTYPED}
    for type_id in range(nr_types or 0):
        info[type_id] = (str(type_id), _PALETTE[(type_id - 1) % len(_PALETTE)] if type_id else _NO_LABEL)
    return info


def load_type_info(path: str | Path, nr_types: int | None = None) -> TypeInfo:
    """Read a `type_info.json`.

    Args:
        path: the file.
        nr_types: number of types (with the background) that it must name; `None` checks nothing.

    Returns:
        `{type id: (name, (red, green, blue))}`, and an entry `None` for nuclei without a type.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of the form above, or types are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such type_info file: {path}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        info = types_of_json(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    missing = [i for i in range(nr_types or 0) if i not in info]
    if missing:
        raise ValueError(f"{path}: the network has {nr_types} types (0 included), the file lacks {missing}")
    return {None: UNTYPED, **info}


def types_of_json(raw) -> TypeInfo:
    """Return names and colours of types from parsed JSON, `{"1": ["name", [red, green, blue]], ...}`.

    Raises:
        ValueError: it is of another form.
    """
    try:
        info: TypeInfo = {int(key): (str(name), _colour(rgb)) for key, (name, rgb) in raw.items()}
        if info and not 0 <= min(info) <= max(info) <= MAX_TYPE_ID:
            raise ValueError(f"type ids are 0 to {MAX_TYPE_ID}")
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f'expected {{"1": ["name", [red, green, blue]], ...}}: {error}') from error
    return info


def split_types(text: str) -> tuple[int | str, ...]:
    """Return types as an option lists them, `Positive,3`: numbers are ids, the rest are names."""
    parts = [part.strip() for part in text.split(",")]
    return tuple(int(part) if part.isdecimal() else part for part in parts if part)


def find_ids(name: str, type_info: TypeInfo) -> list[int]:
    """Return the ids of the types of that name; upper and lower case are the same."""
    wanted = name.strip().lower()
    return [key for key, (own, _) in type_info.items() if key is not None and own.strip().lower() == wanted]


def type_ids(wanted: Iterable[int | str], type_info: TypeInfo, option: str) -> tuple[int, ...]:
    """Turn names or numbers of types into ids.

    Args:
        wanted: as `split_types` gives them.
        type_info: the known types.
        option: name of the option, for the message.

    Raises:
        ValueError: no type has that name; the message lists the names.
    """
    ids: dict[int, None] = {}
    for one in wanted:
        found = find_ids(one, type_info) if isinstance(one, str) else [one]
        if not found:
            names = say_types((key for key in type_info if key is not None), type_info)
            raise ValueError(
                f"{option}: no type is called `{one}`; there is {names or 'no name: give numbers, as 1,2,3'}"
            )
        ids |= dict.fromkeys(found)
    return tuple(ids)


def positive_ids(type_info: TypeInfo) -> tuple[int, ...]:
    """Return the types whose name says positive, weak, moderate or strong; none where no name does."""
    names = [(key, name) for key, (name, _) in type_info.items() if key]
    return tuple(key for key, name in names if _POSITIVE.search(name) and not _NOT_POSITIVE.search(name))


def differing_names(first: TypeInfo, second: TypeInfo) -> list[int]:
    """Return the types that two sources call by different names, 0 left out; upper and lower case are the same."""
    both = (key for key in first if key and key in second)
    return sorted(key for key in both if first[key][0].strip().lower() != second[key][0].strip().lower())


def type_name(type_id: int | None, type_info: TypeInfo | None) -> str:
    """Return what a type is called: its name, or its number where it has none."""
    return type_info[type_id][0] if type_info and type_id in type_info else str(type_id)


def say_types(ids: Iterable[int], type_info: TypeInfo | None) -> str:
    """Return types as a person reads them, `1 Positive, 3 strong`."""
    said = ((str(key), type_name(key, type_info)) for key in ids)
    return ", ".join(key if name == key else f"{key} {name}" for key, name in said)


def types_by_name(names: Mapping[int, str], info: TypeInfo, renamed: Mapping[str, str] | None = None) -> dict[int, int]:
    """Return the network's id for each type of a data set, matched by name; upper and lower case are the same.

    Args:
        names: the data set's types.
        info: the network's.
        renamed: other names for types of the data set, `{its name: the network's}`.

    Returns:
        `{id of the data set: id of the network}`; `UNKNOWN_TYPE` for names that the network does not have.

    Raises:
        ValueError: `renamed` has a name that the data set or the network lacks.
    """
    ids = {name.lower(): type_id for type_id, (name, _) in info.items() if type_id}
    renamed = {old.lower(): new.lower() for old, new in (renamed or {}).items()}
    known = {name.lower() for name in names.values()}
    for name, there in (*((old, known) for old in renamed), *((new, ids.keys()) for new in renamed.values())):
        if name not in there:
            raise ValueError(f"there is no type `{name}` to rename; there is {', '.join(sorted(there)) or 'none'}")
    return {old: ids.get(renamed.get(name.lower(), name.lower()), UNKNOWN_TYPE) for old, name in sorted(names.items())}


def renumber_types(label: np.ndarray, ids: Mapping[int, int]) -> np.ndarray:
    """Return a label, (H, W, 2) instances and types, with new type ids; nuclei of other types are of unknown type."""
    table = np.full(max(int(label[..., 1].max(initial=0)), *ids, 0) + 1, UNKNOWN_TYPE, label.dtype)
    table[list(ids)] = list(ids.values())
    types = np.where(label[..., 0] > 0, table[label[..., 1]], 0)
    return np.stack([label[..., 0], types], axis=-1)


def _colour(rgb) -> RGB:
    red, green, blue = (int(value) for value in rgb)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"colour {rgb} is not three numbers from 0 to 255")
    return red, green, blue
