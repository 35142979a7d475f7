"""Scores on whole validation images while training: the steps of inference, the metrics of `compute_stats.py`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

from infer.grid import Planes
from infer.plan import Plan, plan_image
from infer.predictor import Predictor
from infer.segment import segment
from infer.source import ImageSource
from infer.stream import PLANNED, Stream, Task
from metrics.detection import match, type_counts, type_f1
from metrics.label_lists import typed_centroids
from metrics.stats_utils import get_dice_1, get_fast_aji, get_fast_pq, remap_label
from misc.files import check_unique_stems, full_stem, list_files
from misc.formats.labels import read_label
from misc.machine import cpu_count
from misc.slides.images import read_image
from misc.threads import Budget
from misc.type_info import UNKNOWN_TYPE
from misc.workers import SharedArray, WorkerPool
from models.hovernet.net_desc import PATCH_SHAPES
from models.hovernet.net_utils import unwrapped
from models.hovernet.post_proc import DROP, REFERENCE, PostProc

from . import distributed

IMAGE_FOLDER, LABEL_FOLDER = "Images", "Labels"
_NOT_LOOKED_AT = -1  # unknown type of a true nucleus: any predicted type is accepted
_IN_TRUTH = [0, 2, 4]  # columns of `type_counts` that count nuclei of the truth


@dataclass(frozen=True)
class Pair:
    """An image and its label `.mat`."""

    image: Path
    label: Path


def find_pairs(folders: Sequence[str | Path]) -> list[Pair]:
    """List the images of `<folder>/Images` with their labels in `<folder>/Labels`.

    Raises:
        FileNotFoundError: a folder or a label is missing.
        ValueError: there is no image, or two share a name.
    """
    pairs = []
    for folder in folders:
        images = list_files(Path(folder) / IMAGE_FOLDER)
        check_unique_stems(images)
        if not images:
            raise ValueError(f"no images in {Path(folder) / IMAGE_FOLDER} (valid_image_dir_list)")
        pairs += [Pair(image, Path(folder) / LABEL_FOLDER / f"{full_stem(image)}.mat") for image in images]
    missing = [str(pair.label) for pair in pairs if not pair.label.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} validation images have no label, the first is {missing[0]}")
    return pairs


@dataclass(frozen=True)
class Truth:
    """The content of a label.

    Attributes:
        inst_map: (H, W) int32, numbered from 1.
        centroids_xy: (N, 2) of the nuclei, px.
        types: (N,) of the nuclei, -1 where unknown; `None` if the label has no types.
    """

    inst_map: np.ndarray
    centroids_xy: np.ndarray
    types: np.ndarray | None


def read_pair(pair: Pair) -> tuple[np.ndarray, Truth]:
    """Read an image, (H, W, 3) uint8, and its label.

    Raises:
        ValueError: one cannot be read, or their sizes differ; the message names the file.
    """
    try:
        image = read_image(pair.image)
    except ValueError as error:
        raise ValueError(f"{pair.image} {error}") from error
    try:
        label = read_label(pair.label)
    except ValueError as error:
        raise ValueError(f"{pair.label} {error}") from error
    if "inst_map" not in label or label["inst_map"].dtype.kind not in "biuf":
        raise ValueError(f"{pair.label} has no inst_map of numbers")
    inst_map = label["inst_map"].astype(np.int32)
    if inst_map.shape != image.shape[:2]:
        raise ValueError(f"{pair.label} is {inst_map.shape}, its image {pair.image} {image.shape[:2]}")
    centroids_xy, types = typed_centroids(label, pair.label)
    if types is not None:  # 0 is background, never a nucleus' type
        types = np.where(np.isin(types, (0, UNKNOWN_TYPE)), _NOT_LOOKED_AT, types)
    return image, Truth(remap_label(inst_map), centroids_xy, types)


def check_pairs(pairs: Sequence[Pair], nr_types: int | None = None) -> str | None:
    """Read every validation image and its label once, so that a bad file stops the run at once, not epochs later.

    Args:
        pairs: images and labels.
        nr_types: of the network, background included; `None` without types.

    Returns:
        Why types cannot be scored, in a few words; `None` if they can.

    Raises:
        ValueError: as `read_pair`.
    """
    with ThreadPoolExecutor(min(8, cpu_count())) as pool:
        reasons = list(pool.map(lambda pair: _why_untyped(pair, nr_types), pairs))
    return next((reason for reason in reasons if reason), None)


def _why_untyped(pair: Pair, nr_types: int | None) -> str | None:
    types = read_pair(pair)[1].types
    if nr_types is None or types is None:
        return f"{pair.label} has none" if types is None else "the network has none"
    if types.max(initial=0) >= nr_types:
        return f"{pair.label} has type {types.max()}, the network only 1 to {nr_types - 1}"
    return None


@dataclass(frozen=True)
class _ScoreJob:
    """Scores the maps of an image, (C, h, w) float32 in the network's plane, against its label.

    `run` returns scores by name, and (nr_types - 1, 5) `type_counts` of types 1, 2, ..., or `None` without types.
    """

    maps: SharedArray
    true: Truth
    nr_types: int | None
    with_types: bool
    post_proc: PostProc

    def run(self) -> tuple[dict[str, float], np.ndarray | None]:
        true, whole = self.true.inst_map, (0, 0, *self.true.inst_map.shape)
        planes = Planes(tuple(self.maps.array.shape[1:]), true.shape)
        inst_map, nuclei, _ = segment(self.maps.array, self.nr_types, planes, whole, whole, self.post_proc)
        pred = remap_label(inst_map)
        (dq, sq, pq), _ = get_fast_pq(true, pred)
        scores = {"dice": get_dice_1(true, pred), "aji": get_fast_aji(true, pred), "dq": dq, "sq": sq, "pq": pq}
        if not self.with_types:
            return scores, None
        matched = match((self.true.centroids_xy, self.true.types), (nuclei.centroids_xy, nuclei.types))
        return scores, np.array([type_counts(matched, k, exhaustive=False) for k in range(1, self.nr_types)])


class _ScoreTask(Task):
    """An image to be scored."""

    def __init__(self, pair: Pair, validator: ImageValidator, net: nn.Module):
        super().__init__(pair.image)
        self.pair, self.validator, self.net = pair, validator, net

    def prepare(self) -> Plan:
        image, self.true = read_pair(self.pair)
        self.source = ImageSource(image, self.validator.scale)
        return plan_image(self.source.planes, PATCH_SHAPES[self.net.mode])

    def job(self, index: int, maps: SharedArray) -> _ScoreJob:
        how = (self.validator.with_types, self.validator.post_proc)
        return _ScoreJob(maps, self.true, self.net.nr_types, *how)


class ImageValidator:
    """Predicts whole images, as `run_infer.py tile` does, and compares them with their labels.

    Args:
        pairs: images and labels.
        scale: factor by which images are reduced for the network; its maps are enlarged back before post-processing.
        batch_size: patches per batch.
        with_types: score types too; needs a network and labels with types.
        post_proc: how nuclei are found.

    Raises:
        ValueError: `scale` is not above 0 and at most 1.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        scale: float = 1.0,
        batch_size: int = 8,
        with_types: bool = False,
        post_proc: PostProc = REFERENCE,
    ):
        if not isinstance(scale, int | float) or not 0 < scale <= 1:
            raise ValueError(f"valid_image_scale must be above 0 and at most 1, got {scale!r}")
        self.pairs = list(pairs)
        self.scale = scale
        self.batch_size = batch_size
        self.with_types = with_types
        self.post_proc = post_proc

    def score(self, model: nn.Module) -> dict[str, float]:
        """Return mean Dice, AJI, DQ, SQ and PQ over the images as `img_dice`, ...; every process scores its share.

        With types, `img_f1_1`, ... are the F1 scores of the types in the truth, over all images together. Images
        without nuclei in truth and prediction have no scores and are left out of the means.

        Raises:
            RuntimeError: an image could not be scored.
        """
        mine = self.pairs[distributed.rank() :: distributed.world_size()]
        gathered = [image for part in distributed.gather(self._scores(unwrapped(model), mine)) for image in part]
        scores, means = [scores for scores, _ in gathered], {}
        for name in scores[0]:
            values = [score[name] for score in scores if np.isfinite(score[name])]
            if values:
                means[f"img_{name}"] = float(np.mean(values))
        return means | _type_f1s([counts for _, counts in gathered if counts is not None])

    def _scores(self, net: nn.Module, pairs: Sequence[Pair]) -> list[tuple[dict[str, float], np.ndarray | None]]:
        # a copy: the network in training keeps its gradients and its place in memory
        device = next(net.parameters()).device
        predictor = Predictor(copy.deepcopy(net), [device], self.batch_size, ink=self.post_proc.ink == DROP)
        tasks = [_ScoreTask(pair, self, net) for pair in pairs]
        stream = Stream(tasks, predictor, WorkerPool(0), readers=1, ahead=1, budget=Budget(0))
        scores = []
        for event in stream.run(tqdm(disable=True)):
            if event.outcome.error:
                raise RuntimeError(f"{event.task.path}: {event.outcome.error}\n{event.outcome.details}")
            if event.what != PLANNED:
                scores.append(event.outcome.value)
        return scores


def _type_f1s(counts: list[np.ndarray]) -> dict[str, float]:
    """Return the F1 of each type that the truth has, from (K, 5) `type_counts` of each image."""
    total = sum(counts) if counts else ()
    return {f"img_f1_{k}": float(type_f1(row)) for k, row in enumerate(total, 1) if row[_IN_TRUTH].any()}
