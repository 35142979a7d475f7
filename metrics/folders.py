"""Scores over folders of `.mat` files: predictions and truth, paired by their full names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.io

from misc.files import full_stem, list_files

from .detection import Matched, detection_counts, detection_f1, match, ratio, type_counts, type_f1
from .overlap import Overlap, whole_numbers
from .stats_utils import aji, aji_plus, get_dice_1, panoptic_quality

# The order in which the original prints them.
INSTANCE_SCORES = ("Dice", "AJI", "DQ", "SQ", "PQ", "AJI+")
# Nuclei of the truth, of the prediction, and pairs of them.
DETECTION_COUNTS = ("true nuclei", "predicted nuclei", "matched nuclei")
# How types of a truth are merged before scoring: {new type: types of the file}. CoNSeP's seven raw types are 1 other,
# 2 inflammatory, 3 healthy epithelial, 4 malignant epithelial, 5 fibroblast, 6 muscle, 7 endothelial; the networks
# predict 1 miscellaneous, 2 inflammatory, 3 epithelial, 4 spindle-shaped.
MERGES: dict[str, dict[int, tuple[int, ...]]] = {"consep": {3: (3, 4), 4: (5, 6, 7)}}


@dataclass
class Scores:
    """What was scored, and what could not be.

    Attributes:
        names: images, in the order of `values`.
        values: for instances (6, N) as `INSTANCE_SCORES`, `nan` where undefined; for types (2 + K,): F1 of
            detection, accuracy, F1 of each of `type_ids`.
        type_ids: the K types scored.
        each_image: (N, 2 + K) the same of each image alone, `nan` where undefined; for types only.
        counts: (N, 3) as `DETECTION_COUNTS`; for types only.
        failed: reason by image.
    """

    names: list[str] = field(default_factory=list)
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    type_ids: list[int] = field(default_factory=list)
    each_image: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, len(DETECTION_COUNTS)), np.int64))
    failed: dict[str, str] = field(default_factory=dict)

    def mean(self) -> np.ndarray:
        """(6,) mean over the images on which a score is defined, `nan` where it is on none."""
        defined = ~np.isnan(self.values)
        total = np.where(defined, self.values, 0).sum(axis=1)
        return np.divide(total, defined.sum(axis=1), out=np.full(len(total), np.nan), where=defined.any(axis=1))

    def undefined(self) -> list[str]:
        """Images without a nucleus in truth and prediction; they count in no mean."""
        return [name for name, column in zip(self.names, self.values.T, strict=True) if np.isnan(column).all()]


def pair_files(pred_dir: str | Path, true_dir: str | Path, ext: str = ".mat") -> tuple[dict, dict[str, str]]:
    """Pair the files of two folders by their full names, dots included.

    Returns:
        `{name: (prediction, truth)}` in order, and the reason for each file that has no partner.

    Raises:
        FileNotFoundError: a folder is missing or holds no such file.
    """
    pred, true = ({full_stem(p): p for p in list_files(folder, f"*{ext}")} for folder in (pred_dir, true_dir))
    for folder, files in ((pred_dir, pred), (true_dir, true)):
        if not files:
            raise FileNotFoundError(f"no *{ext} in {folder}")
    lone = {name: f"no truth in {true_dir}" for name in pred.keys() - true.keys()}
    lone |= {name: f"no prediction in {pred_dir}" for name in true.keys() - pred.keys()}
    return {name: (pred[name], true[name]) for name in pred if name in true}, lone


def score_instances(pred_dir: str | Path, true_dir: str | Path, ext: str = ".mat") -> Scores:
    """Score the instance maps of two folders; a file that cannot be scored is reported, the others are scored."""
    pairs, failed = pair_files(pred_dir, true_dir, ext)
    scores, columns = Scores(failed=failed), []
    for name, (pred_path, true_path) in pairs.items():
        try:
            columns.append(instance_scores(read_map(true_path, "inst_map"), read_map(pred_path, "inst_map")))
        except (ValueError, OSError) as error:
            scores.failed[name] = str(error)
        else:
            scores.names.append(name)
    scores.values = np.array(columns, np.float64).reshape(-1, len(INSTANCE_SCORES)).T
    return scores


def instance_scores(true: np.ndarray, pred: np.ndarray) -> list[float]:
    """Return all scores of one image, as `INSTANCE_SCORES`."""
    overlap = Overlap.of(true, pred)
    dq, sq, pq = panoptic_quality(overlap)[0]
    return [get_dice_1(true, pred), aji(overlap), dq, sq, pq, aji_plus(overlap)]


def score_types(
    pred_dir: str | Path,
    true_dir: str | Path,
    type_ids: Sequence[int] | None = None,
    exhaustive: bool = True,
    merge: str | None = None,
    ext: str = ".mat",
) -> Scores:
    """Score detection and classification over two folders, all nuclei of all images together.

    Where an image holds no nucleus, the original makes up one of type 0 at (0, 0); here it has none.

    Args:
        type_ids: types to score; those of the truth when left out.
        exhaustive: every nucleus of the truth has a type; otherwise type -1 is "not looked at" and not held
            against the prediction.
        merge: name of an entry of `MERGES`, applied to the truth.

    Raises:
        ValueError: unknown `merge`.
    """
    check_merge(merge)
    pairs, failed = pair_files(pred_dir, true_dir, ext)
    scores, parts = Scores(failed=failed), []
    for name, (pred_path, true_path) in pairs.items():
        try:
            true_xy, true_types = read_types(true_path)
            parts.append(match((true_xy, merge_types(true_types, merge)), read_types(pred_path)))
        except (ValueError, OSError) as error:
            scores.failed[name] = str(error)
        else:
            scores.names.append(name)
    together = Matched(*(np.concatenate(column) for column in zip(Matched.nothing(), *parts, strict=True)))
    true_types = np.concatenate([together.true, together.missed])
    scores.type_ids = sorted(set(type_ids if type_ids is not None else true_types.tolist()))
    scores.values = _type_scores(together, scores.type_ids, exhaustive)
    each = [_type_scores(part, scores.type_ids, exhaustive) for part in parts]
    scores.each_image = np.array(each).reshape(len(parts), len(scores.values))
    counts = [(len(p.true) + len(p.missed), len(p.pred) + len(p.invented), len(p.true)) for p in parts]
    scores.counts = np.array(counts, np.int64).reshape(len(parts), len(DETECTION_COUNTS))
    return scores


def _type_scores(matched: Matched, type_ids: Sequence[int], exhaustive: bool) -> np.ndarray:
    """(2 + K,) F1 of detection, share of matched nuclei whose type is right, F1 of each type; `nan` where undefined."""
    right = np.count_nonzero(matched.true == matched.pred)
    judged = len(matched.true) - (0 if exhaustive else np.count_nonzero(matched.true == -1))
    f1_types = [type_f1(type_counts(matched, k, exhaustive)) for k in type_ids]
    return np.array([detection_f1(detection_counts(matched)), ratio(right, judged), *f1_types])


def check_merge(merge: str | None) -> None:
    """Check that this is a preset of `MERGES`, or `None`.

    Raises:
        ValueError: it is not.
    """
    if merge is not None and merge not in MERGES:
        raise ValueError(f"unknown merge `{merge}`; there is {', '.join(MERGES)}")


def merge_types(types: np.ndarray, merge: str | None) -> np.ndarray:
    """Return types with those of a preset of `MERGES` merged; `None` changes nothing."""
    result = types.copy()
    for new, olds in MERGES.get(merge, {}).items():
        result[np.isin(types, olds)] = new
    return result


def read_map(path: Path, key: str) -> np.ndarray:
    """Read an (H, W) map of whole numbers.

    Raises:
        ValueError: the file cannot be read, or holds none.
    """
    labels = load_mat(path, (key,))[key]
    try:
        return whole_numbers(labels)
    except ValueError as error:
        raise ValueError(f"{path}: {key}: {error}") from error


def load_mat(path: Path, keys: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read a `.mat` file that holds `keys`.

    Raises:
        ValueError: it cannot be read, or lacks one.
    """
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:  # a damaged file can make scipy raise almost anything
        raise ValueError(f"{path}: not a readable .mat file ({error})") from error
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{path}: lacks {missing}; it holds {sorted(k for k in content if k[0] != '_')}")
    return content


def read_types(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 2) centroids and (N,) types; taken from the maps where a label file has no lists."""
    content = load_mat(path)
    if "inst_centroid" in content and "inst_type" in content:
        centroids = content["inst_centroid"].astype(np.float32).reshape(-1, 2)
        types = content["inst_type"].astype(np.int64).ravel()
        if len(centroids) != len(types):
            raise ValueError(f"{path}: {len(centroids)} centroids but {len(types)} types")
        return centroids, types
    inst_map, type_map = (read_map(path, key) for key in ("inst_map", "type_map"))
    if type_map.shape != inst_map.shape:
        raise ValueError(f"{path}: type_map {type_map.shape} does not fit inst_map {inst_map.shape}")
    return lists_from_maps(inst_map, type_map)


def lists_from_maps(inst_map: np.ndarray, type_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass of every instance, and the type that most of its pixels have (of equal ones the lowest)."""
    ys, xs = np.nonzero(inst_map)
    ids, which = np.unique(inst_map[ys, xs], return_inverse=True)
    area = np.bincount(which, minlength=len(ids))
    centroids = np.stack([np.bincount(which, v, len(ids)) / np.maximum(area, 1) for v in (xs, ys)], axis=-1)
    types, column = np.unique(type_map[ys, xs], return_inverse=True)  # -1 is one, where a truth is not exhaustive
    votes = np.zeros((len(ids), len(types)), np.int64)
    np.add.at(votes, (which, column), 1)
    return centroids.astype(np.float32), types[votes.argmax(axis=1)] if len(ids) else types
