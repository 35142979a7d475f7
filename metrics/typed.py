"""Scores of typed nuclei over a set of images: HoVer-Net's Fd and F1, PanNuke's mPQ and bPQ, CoNIC's mPQ+ and R2.

- Fd, F1 of each type: HoVer-Net paper (Graham et al., 2019), section 4.2: nuclei of all images together.
- Fc (ours): F1 of each type among matched nuclei, so that missed and invented nuclei do not count; mean over the types.
- mPQ, bPQ: PanNuke (Gamper et al., 2020, arXiv 2003.10778): PQ of each type (mPQ) and of all nuclei (bPQ) in each
  image. Types without a nucleus in the truth of an image are left out of its mean; then the mean over the images.
  (PanNuke's tables take the mean over the images of a tissue, then over the tissues.)
- mPQ+, R2: CoNIC (Graham et al., 2024): PQ of each type from matches and overlaps summed over all images, and the
  coefficient of determination of the number of nuclei of each type in an image; means over the types.

Undefined scores (no nucleus in truth and prediction; numbers of nuclei that never change) are `nan`, and in no mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from misc.batch import recorded
from misc.type_info import TypeInfo

from .detection import detection_counts, detection_f1, match, type_counts, type_f1
from .folders import pair_files
from .label_lists import load, take_names, typed_centroids, typed_pixels
from .overlap import Overlap
from .stats_utils import EPS
from .type_maps import apply, read_merge, resolve

# Nuclei match if their IoU is above this; such matches are unique.
MATCH_IOU = 0.5


@dataclass
class TypedCounts:
    """Counts of K types in N images; all scores are computed from them, also for a resample of the images.

    Attributes:
        names: of the images.
        type_ids: the K types.
        detection: (N, 3) as `detection.detection_counts`.
        types: (N, K, 5) as `detection.type_counts`.
        panoptic: (N, 1 + K, 4) as `panoptic_counts`, of all nuclei first, then of each type.
        nuclei: (N, 2, K) number of nuclei of each type, truth and prediction.
        failed: reason by image.
    """

    names: list[str]
    type_ids: list[int]
    detection: np.ndarray
    types: np.ndarray
    panoptic: np.ndarray
    nuclei: np.ndarray
    failed: dict[str, str] = field(default_factory=dict)

    def scores(self, picks: np.ndarray | None = None) -> dict[str, float]:
        """Return all scores, of all images or of those picked: `Fd`, `Fc`, `F1 <type>`, `mPQ`, `bPQ`, `mPQ+`, `R2`.

        Args:
            picks: positions of images; an image may be picked several times.
        """
        picks = np.arange(len(self.names)) if picks is None else picks
        panoptic, by_type = self.panoptic[picks], self.types[picks].sum(axis=0)
        pairs = by_type[:, :3]  # with the type in both, in the prediction only, in the truth only
        in_images = image_pq(panoptic)  # (N, 1 + K)
        return {
            "Fd": detection_f1(self.detection[picks].sum(axis=0)),
            "Fc": _mean(np.array([detection_f1(counts) for counts in pairs])),
            **{f"F1 {k}": type_f1(counts) for k, counts in zip(self.type_ids, by_type, strict=True)},
            "mPQ": _mean(_mean(in_images[:, 1:], axis=1)),
            "bPQ": _mean(in_images[:, 0]),
            "mPQ+": _mean(summed_pq(panoptic[:, 1:])),
            "R2": _mean(determination(*np.moveaxis(self.nuclei[picks], 1, 0))),
        }

    @classmethod
    def joined(cls, parts: Iterable[TypedCounts]) -> TypedCounts:
        """Join the counts of several sets of images with the same types."""
        parts = list(parts)
        arrays = [
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("detection", "types", "panoptic", "nuclei")
        ]
        failed = {name: reason for part in parts for name, reason in part.failed.items()}
        return cls([name for part in parts for name in part.names], parts[0].type_ids, *arrays, failed)


def score_typed(
    pred_dir: str | Path, true_dir: str | Path, merge: str | None = None, type_ids: Iterable[int] | None = None
) -> TypedCounts:
    """Count, over two folders of `.mat` files, what the scores of types need.

    Args:
        pred_dir: predictions, with an instance map and types.
        true_dir: the same for the truth, under the same names.
        merge: name of an entry of `type_maps.MERGES`, or a JSON file, applied to the truth.
        type_ids: types to count; `None` for those of the truth.

    Raises:
        ValueError: unknown `merge`, a name in it that no type has, or a file of `true_dir` is a prediction.
        FileNotFoundError: a folder is missing or empty.
    """
    change = read_merge(merge) if merge is not None else {}
    pairs, failed = pair_files(pred_dir, true_dir)
    names, images = [], []
    true_names, pred_names = {}, {}
    for name, (pred_path, true_path) in pairs.items():
        with recorded(failed, name):
            true, pred = _Image.read(true_path, true_names), _Image.read(pred_path, pred_names)
            if true.inst_map.shape != pred.inst_map.shape:
                raise ValueError(f"{pred_path}: {pred.inst_map.shape} px, the truth {true.inst_map.shape}")
            names.append(name)
            images.append((true, pred))
    merged = resolve(change, true_names, pred_names, "--merge")
    images = [(true.merged(merged), pred) for true, pred in images]
    type_ids = sorted(type_ids if type_ids is not None else {int(t) for true, _ in images for t in true.types if t > 0})
    counted = [_count(true, pred, type_ids) for true, pred in images]
    shapes = ((3,), (len(type_ids), 5), (1 + len(type_ids), 4), (2, len(type_ids)))
    columns = zip(*counted, strict=True) if counted else [()] * len(shapes)
    arrays = (np.array(part).reshape(-1, *shape) for part, shape in zip(columns, shapes, strict=True))
    return TypedCounts(names, type_ids, *arrays, failed)


def panoptic_counts(true: np.ndarray, pred: np.ndarray) -> tuple[int, int, int, float]:
    """Return the numbers of matched, invented and missed nuclei of two (H, W) label maps, and the sum of their IoU."""
    overlap = Overlap.of(true, pred)
    iou = overlap.inter / overlap.union
    hits = iou > MATCH_IOU
    count = np.count_nonzero(hits)
    return count, len(overlap.pred_ids) - count, len(overlap.true_ids) - count, float(iou[hits].sum())


def image_pq(counts: np.ndarray) -> np.ndarray:
    """PQ from (..., 4) `panoptic_counts`, as PanNuke has it: `nan` where the truth has no nucleus."""
    hits, invented, missed, overlap = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore"):  # 0 / 0
        quality = hits / (hits + 0.5 * invented + 0.5 * missed) * overlap / (hits + EPS)
    return np.where(hits + missed > 0, quality, np.nan)


def summed_pq(counts: np.ndarray) -> np.ndarray:
    """PQ+ of K types from (N, K, 4) `panoptic_counts` of N images, as CoNIC has it; `nan` without any nucleus."""
    hits, invented, missed, overlap = np.moveaxis(counts.sum(axis=0), -1, 0)
    quality = hits / (hits + 0.5 * invented + 0.5 * missed + EPS) * overlap / (hits + EPS)
    return np.where(hits + invented + missed > 0, quality, np.nan)


def determination(true: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """R2 of (N, K) numbers of nuclei, one for each type; `nan` where the truth has the same number in every image."""
    rest = np.square(true - pred).sum(axis=0)
    spread = np.square(true - true.mean(axis=0)).sum(axis=0)
    return 1 - np.divide(rest, spread, out=np.full(len(spread), np.nan), where=spread > 0)


@dataclass(frozen=True)
class _Image:
    """Label map, type of each of its pixels, and (M, 2) centroids and (M,) types of its nuclei."""

    inst_map: np.ndarray
    type_map: np.ndarray
    centroids: np.ndarray
    types: np.ndarray

    @classmethod
    def read(cls, path: Path, names: TypeInfo) -> _Image:
        """Read a label file, and add its names of types to `names`."""
        content = load(path)
        take_names(content, names)
        return cls(*typed_pixels(content, path), *typed_centroids(content, path))

    def merged(self, ids: Mapping[int, int]) -> _Image:
        return replace(self, type_map=apply(self.type_map, ids), types=apply(self.types, ids))


def _count(true: _Image, pred: _Image, type_ids: Sequence[int]) -> tuple:
    matched = match((true.centroids, true.types), (pred.centroids, pred.types))
    of_type = [panoptic_counts(*(x.inst_map * (x.type_map == k) for x in (true, pred))) for k in type_ids]
    return (
        detection_counts(matched),
        [type_counts(matched, k) for k in type_ids],
        [panoptic_counts(true.inst_map, pred.inst_map), *of_type],
        [[np.count_nonzero(x.types == k) for k in type_ids] for x in (true, pred)],
    )


def _mean(values: np.ndarray, axis: int | None = None):
    """Mean of the values that are not `nan`; `nan` if there are none."""
    defined = ~np.isnan(values)
    total, count = np.where(defined, values, 0).sum(axis=axis), defined.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[()]
