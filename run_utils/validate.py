"""Scores on whole validation images while training: the same steps as inference, the same metrics as scoring."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from torch import nn
from tqdm import tqdm

from infer.grid import Planes
from infer.plan import Plan, plan_image
from infer.predictor import Predictor
from infer.segment import segment
from infer.source import ImageSource
from infer.stream import PLANNED, Stream, Task
from metrics.stats_utils import get_dice_1, get_fast_aji, get_fast_pq, remap_label
from misc.files import check_unique_stems, full_stem, list_files
from misc.machine import cpu_count
from misc.slides.images import read_image
from misc.threads import Budget
from misc.workers import SharedArray, WorkerPool
from models.hovernet.net_desc import PATCH_SHAPES
from models.hovernet.net_utils import unwrapped

from . import distributed

IMAGE_FOLDER, LABEL_FOLDER = "Images", "Labels"


@dataclass(frozen=True)
class Pair:
    """An image and its label `.mat`."""

    image: Path
    label: Path


def find_pairs(folders: Sequence[str | Path]) -> list[Pair]:
    """List the images of `<folder>/Images` with their labels in `<folder>/Labels`.

    Raises:
        FileNotFoundError: a folder or a label is missing.
        ValueError: there is no image, or two have one name.
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


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Read an image, (H, W, 3) uint8, and its instances, (H, W) int32 numbered from 1.

    Raises:
        ValueError: one cannot be read, or they do not fit each other; the message names the file.
    """
    try:
        image = read_image(pair.image)
    except ValueError as error:
        raise ValueError(f"{pair.image} {error}") from error
    try:
        label = scipy.io.loadmat(pair.label, variable_names=["inst_map"])
    except NotImplementedError as error:
        raise ValueError(f"{pair.label} is a MATLAB v7.3 file; save it with `save -v7`") from error
    except Exception as error:  # a damaged file can make scipy raise almost anything
        raise ValueError(f"{pair.label} is no readable .mat file ({error})") from error
    if "inst_map" not in label or label["inst_map"].dtype.kind not in "biuf":
        raise ValueError(f"{pair.label} has no inst_map of numbers")
    inst_map = label["inst_map"].astype(np.int32)
    if inst_map.shape != image.shape[:2]:
        raise ValueError(f"{pair.label} is {inst_map.shape}, its image {pair.image} {image.shape[:2]}")
    return image, remap_label(inst_map)


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Read every validation image and its label once, before the first of them is scored epochs later.

    Raises:
        ValueError: as `read_pair`.
    """
    with ThreadPoolExecutor(min(8, cpu_count())) as pool:
        for _ in pool.map(lambda pair: read_pair(pair) and None, pairs):
            pass


@dataclass(frozen=True)
class _ScoreJob:
    """Scores the maps of an image, (C, h, w) float32 of the network's plane, by its label, (H, W) int32."""

    maps: SharedArray
    true: np.ndarray
    nr_types: int | None

    def run(self) -> dict[str, float]:
        whole = (0, 0, *self.true.shape)
        planes = Planes(tuple(self.maps.array.shape[1:]), self.true.shape)
        pred = remap_label(segment(self.maps.array, self.nr_types, planes, whole, whole)[0])
        (dq, sq, pq), _ = get_fast_pq(self.true, pred)
        return {"dice": get_dice_1(self.true, pred), "aji": get_fast_aji(self.true, pred), "dq": dq, "sq": sq, "pq": pq}


class _ScoreTask(Task):
    """An image that is to be scored."""

    def __init__(self, pair: Pair, scale: float, net: nn.Module):
        super().__init__(pair.image)
        self.pair, self.scale, self.net = pair, scale, net

    def prepare(self) -> Plan:
        image, self.true = read_pair(self.pair)
        self.source = ImageSource(image, self.scale)
        return plan_image(self.source.planes, PATCH_SHAPES[self.net.mode])

    def job(self, index: int, maps: SharedArray) -> _ScoreJob:
        return _ScoreJob(maps, self.true, self.net.nr_types)


class ImageValidator:
    """Predicts whole images, as `run_infer.py tile` does, and compares them with their labels.

    Args:
        pairs: images and labels.
        scale: size at which the network sees an image, 1.0 as it is; its maps are enlarged back before post-processing.
        batch_size: patches at a time.
    """

    def __init__(self, pairs: Sequence[Pair], scale: float = 1.0, batch_size: int = 8):
        if not isinstance(scale, int | float) or not 0 < scale <= 1:
            raise ValueError(f"valid_image_scale must be above 0 and at most 1, got {scale!r}")
        self.pairs = list(pairs)
        self.scale = scale
        self.batch_size = batch_size

    def score(self, model: nn.Module) -> dict[str, float]:
        """Return mean Dice, AJI, DQ, SQ and PQ over the images as `img_dice`, ...; every process does its share.

        An image without nuclei in which none were found has no scores, and is left out of the mean.
        """
        mine = self.pairs[distributed.rank() :: distributed.world_size()]
        scores = [score for part in distributed.gather(self._scores(unwrapped(model), mine)) for score in part]
        means = {}
        for name in scores[0]:
            values = [score[name] for score in scores if np.isfinite(score[name])]
            if values:
                means[f"img_{name}"] = float(np.mean(values))
        return means

    def _scores(self, net: nn.Module, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        # a copy: the network of the training keeps its gradients and its place in memory
        predictor = Predictor(copy.deepcopy(net), [next(net.parameters()).device], self.batch_size)
        tasks = [_ScoreTask(pair, self.scale, net) for pair in pairs]
        stream = Stream(tasks, predictor, WorkerPool(0), readers=1, ahead=1, budget=Budget(0))
        scores = []
        for event in stream.run(tqdm(disable=True)):
            if event.outcome.error:
                raise RuntimeError(f"{event.task.path}: {event.outcome.error}\n{event.outcome.details}")
            if event.what != PLANNED:
                scores.append(event.outcome.value)
        return scores
