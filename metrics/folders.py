"""Scores over folders of `.mat` files: predictions and truth, paired by their full names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from misc.batch import recorded
from misc.files import full_stem, list_files
from misc.formats.labels import PREDICTION_KEY, says_prediction
from misc.type_info import TypeInfo, differing_names, say_types, type_ids

from .detection import Matched, detection_counts, detection_f1, match, ratio, type_counts, type_f1
from .label_lists import load, read_map, take_names, typed_centroids
from .overlap import Overlap
from .stats_utils import aji, aji_plus, get_dice_1, panoptic_quality
from .type_maps import TypeMap, apply, read_merge, resolve

# The order in which the original prints them.
INSTANCE_SCORES = ("Dice", "AJI", "DQ", "SQ", "PQ", "AJI+")
# Numbers of nuclei in the truth, in the prediction, and of pairs of them.
DETECTION_COUNTS = ("true nuclei", "predicted nuclei", "matched nuclei")


@dataclass
class Scores:
    """Scores of N images, and the images that failed.

    Attributes:
        names: images, in the order of `values`.
        values: for instances (6, N) as `INSTANCE_SCORES`, `nan` where undefined; for types (2 + K,): F1 of
            detection, accuracy, F1 of each of `type_ids`; for a network without types (1,): F1 of detection.
        type_ids: the K types scored.
        each_image: (N, 2 + K) or (N, 1), `values` of each image alone, `nan` where undefined; for types only.
        counts: (N, 3) as `DETECTION_COUNTS`; for types only.
        failed: reason by image.
        type_info: names of types, as far as known.
        notes: remarks for the user.
    """

    names: list[str] = field(default_factory=list)
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    type_ids: list[int] = field(default_factory=list)
    each_image: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, len(DETECTION_COUNTS)), np.int64))
    failed: dict[str, str] = field(default_factory=dict)
    type_info: TypeInfo = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def mean(self) -> np.ndarray:
        """(6,) mean of each score of instances over the images on which it is defined; `nan` if there is none."""
        defined = ~np.isnan(self.values)
        total = np.where(defined, self.values, 0).sum(axis=1)
        return np.divide(total, defined.sum(axis=1), out=np.full(len(total), np.nan), where=defined.any(axis=1))

    def undefined(self) -> list[str]:
        """Images without a nucleus in truth and prediction; they are in no mean."""
        return [name for name, column in zip(self.names, self.values.T, strict=True) if np.isnan(column).all()]


def pair_files(pred_dir: str | Path, true_dir: str | Path, ext: str = ".mat") -> tuple[dict, dict[str, str]]:
    """Pair the files of two folders by their full names, dots included.

    Returns:
        `{name: (prediction, truth)}` in order, and an error for each file without a partner.

    Raises:
        FileNotFoundError: a folder is missing or holds no such file.
        ValueError: a file of `true_dir` is a prediction.
    """
    pred, true = ({full_stem(p): p for p in list_files(folder, f"*{ext}")} for folder in (pred_dir, true_dir))
    for folder, files in ((pred_dir, pred), (true_dir, true)):
        if not files:
            raise FileNotFoundError(f"no *{ext} in {folder}; --ext says how labels and predictions end")
    lone = {name: f"no truth in {true_dir}" for name in pred.keys() - true.keys()}
    lone |= {name: f"no prediction in {pred_dir}" for name in true.keys() - pred.keys()}
    for name in pred.keys() & true.keys():
        if says_prediction(true[name]):
            raise ValueError(
                f"{true[name]} is a prediction ({PREDICTION_KEY}), not a truth; are --true_dir and --pred_dir swapped?"
            )
    return {name: (pred[name], true[name]) for name in pred if name in true}, lone


def score_instances(pred_dir: str | Path, true_dir: str | Path, ext: str = ".mat") -> Scores:
    """Score the instance maps of two folders; `failed` has the files that cannot be scored. Raises as `pair_files`."""
    pairs, failed = pair_files(pred_dir, true_dir, ext)
    scores, columns = Scores(failed=failed), []
    for name, (pred_path, true_path) in pairs.items():
        with recorded(scores.failed, name):
            true, pred = (read_map(load(path), "inst_map", path) for path in (true_path, pred_path))
            columns.append(instance_scores(true, pred))
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
    type_uids: Sequence[int | str] | None = None,
    exhaustive: bool = True,
    merge: str | None = None,
    ext: str = ".mat",
    true_types: TypeMap | None = None,
    pred_types: TypeMap | None = None,
    type_info: TypeInfo | None = None,
) -> Scores:
    """Score detection and classification over two folders, all nuclei of all images together.

    The original adds a nucleus of type 0 at (0, 0) to an image without nuclei; this function does not.

    Args:
        pred_dir, true_dir: folders of predictions and truth, paired by the names of their files.
        type_uids: types to score, by name or number; `None` for those of the truth.
        exhaustive: every nucleus of the truth has a type; otherwise -1 is an unknown type, and any prediction fits it.
        merge: name of an entry of `MERGES`, or a JSON file, applied to the truth.
        ext: ending of the files' names.
        true_types, pred_types: types to replace before scoring, in the truth and in the prediction.
        type_info: names of the types; types that it does not name have the names in the files.

    Raises:
        FileNotFoundError, ValueError: as `pair_files`; ValueError also for an unknown `merge` or name of a type.
    """
    changes = {"--merge": read_merge(merge)} if merge is not None else {}
    changes |= {"--true_types": true_types} if true_types else {}
    pairs, failed = pair_files(pred_dir, true_dir, ext)
    scores, sides = Scores(failed=failed), {}
    names: list[TypeInfo] = [dict(type_info or {}), dict(type_info or {})]  # of truth and prediction
    for name, (pred_path, true_path) in pairs.items():
        with recorded(scores.failed, name):
            sides[name] = [_read_side(path, own) for path, own in zip((true_path, pred_path), names, strict=True)]
            if sides[name][0][1] is None:
                del sides[name]
                raise ValueError(f"{true_path}: has no types, which --mode=type scores")
    if _drop_untyped(sides, scores):
        return _detection_alone(sides, scores)
    if not (changes or pred_types):
        scores.notes += _differing_names(*names)
    to_true = [resolve(change, names[0], names[1], option) for option, change in changes.items()]
    to_pred = resolve(pred_types, names[1], names[0], "--pred_types") if pred_types else {}
    parts = []
    for (true_xy, true_ids), (pred_xy, pred_ids) in sides.values():
        for ids in to_true:
            true_ids = apply(true_ids, ids)
        parts.append(match((true_xy, true_ids), (pred_xy, apply(pred_ids, to_pred))))
    scores.type_info = {**names[1], **names[0]} if pred_types else {**names[0], **names[1]}
    _fill_in(scores, list(sides), parts, exhaustive, type_uids)
    return scores


def _read_side(path: Path, names: TypeInfo) -> tuple[np.ndarray, np.ndarray | None]:
    """Return centroids and types of a file, and add its names of types to `names`."""
    content = load(path)
    take_names(content, names)
    return typed_centroids(content, path)


def _drop_untyped(sides: dict, scores: Scores) -> bool:
    """Return whether no prediction has types. If only some have none, those fail."""
    untyped = [name for name, (_, (_, types)) in sides.items() if types is None]
    if untyped and len(untyped) == len(sides):
        return True
    for name in untyped:
        del sides[name]
        scores.failed[name] = "its prediction has no types, but those of other images have"
    return False


def _detection_alone(sides: dict, scores: Scores) -> Scores:
    scores.notes.append("this network has no types: only the F1 score of detection")
    nothing = [match(true, (xy, np.zeros(len(xy), np.int64))) for true, (xy, _) in sides.values()]
    _fill_in(scores, list(sides), nothing, True, ())
    scores.values, scores.each_image = scores.values[:1], scores.each_image[:, :1]
    return scores


def _differing_names(true: TypeInfo, pred: TypeInfo) -> list[str]:
    """Return a warning about type ids whose names differ between truth and prediction."""
    ids = differing_names(true, pred)
    if not ids:
        return []
    first, second = (say_types(ids, names) for names in (true, pred))
    return [f"WARNING: truth has the types {first}, the prediction {second}; --true_types says which are the same"]


def _fill_in(
    scores: Scores, names: list[str], parts: list[Matched], exhaustive: bool, wanted: Sequence[int | str] | None
) -> None:
    """Score the images `names`, each and all together."""
    together = Matched(*(np.concatenate(column) for column in zip(Matched.nothing(), *parts, strict=True)))
    true_types = np.concatenate([together.true, together.missed])
    ids = true_types.tolist() if wanted is None else type_ids(wanted, scores.type_info, "--type_uid_list")
    scores.names, scores.type_ids = names, sorted(set(ids))
    scores.values = _type_scores(together, scores.type_ids, exhaustive)
    each = [_type_scores(part, scores.type_ids, exhaustive) for part in parts]
    scores.each_image = np.array(each).reshape(len(parts), len(scores.values))
    counts = [(len(p.true) + len(p.missed), len(p.pred) + len(p.invented), len(p.true)) for p in parts]
    scores.counts = np.array(counts, np.int64).reshape(len(parts), len(DETECTION_COUNTS))


def _type_scores(matched: Matched, type_ids: Sequence[int], exhaustive: bool) -> np.ndarray:
    """(2 + K,) F1 of detection, share of matched nuclei whose type is right, F1 of each type; `nan` where undefined."""
    right = np.count_nonzero(matched.true == matched.pred)
    judged = len(matched.true) - (0 if exhaustive else np.count_nonzero(matched.true == -1))
    f1_types = [type_f1(type_counts(matched, k, exhaustive)) for k in type_ids]
    return np.array([detection_f1(detection_counts(matched)), ratio(right, judged), *f1_types])
