"""Read label files of any kind for scoring: maps of instances and types, centroids with types."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from misc.formats.labels import check_points, keys_of, read_label, types_by_id, types_of
from misc.type_info import TypeInfo

from .overlap import ids_and_areas, whole_numbers

# Names of the lists of types, ids and centroids: ours and CoNSeP's, and Lizard's.
LISTS = (("inst_type", "inst_uid", "inst_centroid"), ("class", "id", "centroid"))


def load(path: Path) -> dict[str, np.ndarray]:
    """Read a label file; errors name it.

    Raises:
        ValueError, FileNotFoundError: as `read_label`.
    """
    try:
        return read_label(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def has_types(path: Path) -> bool:
    """Whether a label file has types of nuclei; raises as `load`."""
    return bool(load(path).keys() & {"type_map", *(type_key for type_key, *_ in LISTS)})


def take_names(content: dict[str, np.ndarray], names: TypeInfo) -> None:
    """Add a label file's names of types to `names`; names that are there already stay."""
    for key, value in (types_of(content) or {}).items():
        names.setdefault(key, value)


def read_map(content: dict[str, np.ndarray], key: str, path: Path) -> np.ndarray:
    """Return a map of a label file as whole numbers, (H, W).

    Raises:
        ValueError: there is no such map, or it does not hold whole numbers.
    """
    if key not in content:
        raise ValueError(f"{path}: lacks {[key]}; it holds {keys_of(content)}")
    try:
        return whole_numbers(content[key])
    except ValueError as error:
        raise ValueError(f"{path}: {key}: {error}") from error


def typed_centroids(content: dict[str, np.ndarray], path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (N, 2) centroids, x and y in px, and (N,) types, `None` if the file has no types.

    Lists go before maps. Centroids that the file does not list are computed from the instance map.

    Raises:
        ValueError: lists or maps do not fit each other, or there is neither.
    """
    try:
        for type_key, uid_key, centroid_key in LISTS:
            if type_key in content and centroid_key in content:
                types = whole_numbers(content[type_key]).ravel().astype(np.int64)
                nr_ids = np.size(content.get(uid_key, types))
                if nr_ids != len(types):
                    raise ValueError(f"{len(types)} types in {type_key}, but {nr_ids} ids in {uid_key}")
                return check_points(content[centroid_key], centroid_key, len(types)), types
        inst_map = read_map(content, "inst_map", path)
        if "type_map" in content:
            return _from_maps(inst_map, read_map(content, "type_map", path))
        ids, centroids = _centroids(inst_map)
        types = _listed_types(content, ids)
        if types is not None:
            return centroids, types
        if "inst_centroid" in content:  # of an untyped network
            nr = np.size(content.get("inst_uid", ids))
            centroids = check_points(content["inst_centroid"], "inst_centroid", nr)
        return centroids, None
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def typed_pixels(content: dict[str, np.ndarray], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps of instances and of types, (H, W) each; without a type map it is made from the list of types.

    Raises:
        ValueError: there are no types, or they do not fit the instances.
    """
    inst_map = read_map(content, "inst_map", path)
    try:
        if "type_map" in content:
            type_map = read_map(content, "type_map", path)
            _check_same_size(inst_map, type_map)
            return inst_map, type_map
        ids, _ = ids_and_areas(inst_map)
        types = _listed_types(content, ids)
        if types is None:
            raise ValueError(f"has no types; it holds {keys_of(content)}")
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    inside, type_map = inst_map != 0, np.zeros(inst_map.shape, np.int64)
    type_map[inside] = types[np.searchsorted(ids, inst_map[inside])]
    return inst_map, type_map


def _listed_types(content: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray | None:
    """Return the (N,) types of the instances `ids` from the file's list, `None` without one."""
    for type_key, uid_key, _ in LISTS:
        if type_key in content:
            uids, types = types_by_id(content, ids, type_key, uid_key)
            order = np.argsort(uids)
            return whole_numbers(types).astype(np.int64)[order][np.searchsorted(uids[order], ids)]
    return None


def _check_same_size(inst_map: np.ndarray, type_map: np.ndarray) -> None:
    if type_map.shape != inst_map.shape:
        raise ValueError(f"type_map {type_map.shape} does not fit inst_map {inst_map.shape}")


def _centroids(inst_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of the instances, and the centre of mass of each, (N, 2) float32 x and y."""
    ys, xs = np.nonzero(inst_map)
    ids, which = np.unique(inst_map[ys, xs], return_inverse=True)
    area = np.bincount(which, minlength=len(ids))
    centroids = np.stack([np.bincount(which, v, len(ids)) / np.maximum(area, 1) for v in (xs, ys)], axis=-1)
    return ids, centroids.astype(np.float32)


def _from_maps(inst_map: np.ndarray, type_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centroids, and the type that most pixels of each instance have (in a tie the lowest)."""
    _check_same_size(inst_map, type_map)
    ids, centroids = _centroids(inst_map)
    inside = inst_map != 0
    types, column = np.unique(type_map[inside], return_inverse=True)  # -1 is one too, in a truth that is not exhaustive
    votes = np.zeros((len(ids), len(types)), np.int64)
    np.add.at(votes, (np.searchsorted(ids, inst_map[inside]), column), 1)
    return centroids, types[votes.argmax(axis=1)] if len(ids) else types
