"""Map class names and colours of drawn contours to types."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from misc.formats import sedeen
from misc.formats.contours import Contour
from misc.type_info import MAX_TYPE_ID, TypeInfo, find_ids

# Name in --mapping for contours without a class.
UNCLASSIFIED = "unclassified"


class TypeMapping:
    """The map from class names and colours to types.

    Args:
        types: name or `#rrggbb` to type id, or to `None` to leave it out; upper and lower case are the same.
        shared: names and colours of several types, which do not decide.
        chosen: names and colours that the user chose; such a colour also decides for named classes.
    """

    def __init__(self, types: dict[str, int | None], shared: Collection[str] = (), chosen: Collection[str] = ()):
        self.types = {_normalised(key): value for key, value in types.items()}
        self.shared = set(shared) - self.types.keys()
        self.chosen = frozenset(chosen)

    @classmethod
    def of_type_info(cls, type_info: dict) -> TypeMapping:
        """Take names and colours of a `type_info.json`; type 0 is no nucleus, and left out."""
        known = {key: value for key, value in type_info.items() if key is not None}
        meanings: dict[str, set[int | None]] = {}
        for key, (name, rgb) in known.items():
            for what in (name, sedeen.pen(rgb)) if key else (name,):
                meanings.setdefault(_normalised(what), set()).add(key or None)
        shared = {what for what, ids in meanings.items() if len(ids) > 1}
        return cls({what: min(ids) for what, ids in meanings.items() if what not in shared}, shared)

    @classmethod
    def of_lab(cls) -> TypeMapping:
        """Take the pens and names of `LAB_PENS`: negative, weak, moderate, strong; the tumour bed is left out."""
        types = {name: key for key, name in sedeen.LAB_CLASSES.items()}
        return cls(types | {pen: key for key, pen in sedeen.LAB_PENS.items()} | {sedeen.TUMOUR_BED_PEN: None})

    @classmethod
    def read(
        cls, path: str | Path, known: Collection[int | None] | None = None, names: TypeInfo | None = None
    ) -> TypeMapping:
        """Read `{"tumour": 1, "#00ff00": "weak", "bed": null}`; 0 is not a nucleus, and is left out like null.

        Args:
            path: the file.
            known: the type ids there are; `None` allows all.
            names: by which types may be called instead of by their ids.

        Raises:
            FileNotFoundError, ValueError: there is no such file, it is not of that form, or has another id.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
            types = {key: _type_id(value, known, names or {}) for key, value in content.items()}
            return cls(types, chosen={_normalised(key) for key in types})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f'{path}: expected {{"class or #rrggbb": type or null, ...}}: {error}') from error

    def __or__(self, other: TypeMapping) -> TypeMapping:
        return TypeMapping({**self.types, **other.types}, self.shared | other.shared, self.chosen | other.chosen)

    def types_of(self, contours: list[Contour], unknown: int | None = None) -> list[int | None]:
        """Return the type of each contour, `None` for those to leave out; the name decides before the colour.

        Args:
            contours: what was drawn.
            unknown: type of contours with unknown name and colour; `None` makes them an error.

        Raises:
            ValueError: there are such; all are listed with their number.
        """
        nameless = Counter(self._describe(contour) for contour in contours if not self._known(contour))
        if nameless and unknown is None:
            listed = ", ".join(f"{what} ({count})" for what, count in sorted(nameless.items()))
            raise ValueError(
                f"no type for {listed}; name them in --mapping (null leaves them out, `{UNCLASSIFIED}` is what has no "
                "class), or use --untyped"
            )
        return [next((self.types[key] for key in self._known(contour)), unknown) for contour in contours]

    def _known(self, contour: Contour) -> list[str]:
        keys = [key for key in _keys(contour) if key in self.types]
        if contour.named:
            return [key for key in keys if key == contour.label.lower() or key in self.chosen]
        return keys

    def _describe(self, contour: Contour) -> str:
        label = f"`{contour.label}`" if contour.label else ""
        several = "which means several types" if self.shared & set(_keys(contour)) else ""
        return " ".join(filter(None, [label, contour.colour, several])) or "no class, no colour"


def _keys(contour: Contour) -> Iterator[str]:
    """Yield the keys of a contour; the first known one decides."""
    yield from (key for key in (contour.label.lower(), contour.colour.lower()) if key)
    if not contour.label:
        yield UNCLASSIFIED


def _normalised(key: str) -> str:
    """Return a name or colour as contours are looked up by: `#rrggbb` without opacity."""
    key = key.strip().lower()
    return key[:7] if key.startswith("#") else key


def _type_id(value, known: Collection[int | None] | None, names: TypeInfo) -> int | None:
    """Return the id that a mapping gives, `None` for null and 0."""
    if value is None:
        return None
    if isinstance(value, str) and len(ids := find_ids(value, names)) == 1:
        return ids[0] or None
    if type(value) is not int or not 0 <= value <= MAX_TYPE_ID:  # True is an int, too
        raise ValueError(f"{json.dumps(value)} is no type id (1, 2, ...) and no type's name")
    if value and known is not None and value not in known:
        raise ValueError(f"--type_info_path has no type {value}")
    return value or None
