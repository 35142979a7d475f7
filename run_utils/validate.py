"""Scores on whole validation images while training: the same steps as inference, the same metrics as scoring."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from torch import nn

from metrics.stats_utils import get_dice_1, get_fast_aji, get_fast_pq, remap_label
from misc.files import check_unique_stems, full_stem, list_files
from misc.machine import cpu_count
from misc.slides.images import read_image, resize
from models.hovernet.net_desc import PATCH_SHAPES
from models.hovernet.net_utils import unwrapped
from models.hovernet.post_proc import process
from models.hovernet.run_desc import infer_step

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


class ImageValidator:
    """Predicts whole images and compares them with their labels.

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
        net = unwrapped(model)
        mine = self.pairs[distributed.rank() :: distributed.world_size()]
        scores = [score for part in distributed.gather([self._score_one(net, pair) for pair in mine]) for score in part]
        means = {}
        for name in scores[0]:
            values = [score[name] for score in scores if np.isfinite(score[name])]
            if values:
                means[f"img_{name}"] = float(np.mean(values))
        return means

    def _score_one(self, net: nn.Module, pair: Pair) -> dict[str, float]:
        image, true = read_pair(pair)
        small = image if self.scale == 1 else resize(image, tuple(round(side * self.scale) for side in true.shape))
        pred_map = predict_image(net, small, self.batch_size)
        pred = remap_label(process(enlarge(pred_map, true.shape, net.nr_types), net.nr_types)[0])
        (dq, sq, pq), _ = get_fast_pq(true, pred)
        return {"dice": get_dice_1(true, pred), "aji": get_fast_aji(true, pred), "dq": dq, "sq": sq, "pq": pq}


def predict_image(net: nn.Module, image: np.ndarray, batch_size: int) -> np.ndarray:
    """Predict every pixel of an image, patch by patch, reflecting it at its edges.

    Args:
        net: the network, not wrapped.
        image: (H, W, 3) uint8.
        batch_size: patches at a time.

    Returns:
        (H, W, C) float32, channels as `run_desc.to_prediction_map` has them.
    """
    patch_in, patch_out = PATCH_SHAPES[net.mode]
    height, width = image.shape[:2]
    margin = (patch_in - patch_out) // 2
    rows, cols = (-(-side // patch_out) for side in (height, width))
    ends = (rows * patch_out - height + margin, cols * patch_out - width + margin)
    # symmetric where the image is smaller than its margin: `reflect` cannot repeat a single row
    padded = np.pad(
        image, ((margin, ends[0]), (margin, ends[1]), (0, 0)), "symmetric" if min(height, width) < 2 else "reflect"
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, (patch_in, patch_in), (0, 1))[::patch_out, ::patch_out]
    patches = windows.reshape(rows * cols, 3, patch_in, patch_in).transpose(0, 2, 3, 1)  # (N, in, in, 3)
    outputs = [
        infer_step(patches[start : start + batch_size].copy(), net) for start in range(0, len(patches), batch_size)
    ]
    out = np.concatenate(outputs)  # (N, out, out, C)
    out = out.reshape(rows, cols, patch_out, patch_out, -1).swapaxes(1, 2)
    return out.reshape(rows * patch_out, cols * patch_out, -1)[:height, :width]


def enlarge(pred_map: np.ndarray, shape_yx: tuple[int, int], nr_types: int | None) -> np.ndarray:
    """Resize maps to (H, W); types, which have no in-between, by nearest neighbour."""
    if pred_map.shape[:2] == tuple(shape_yx):
        return pred_map
    if nr_types is None:
        return resize(pred_map, shape_yx)
    types = resize(np.ascontiguousarray(pred_map[..., 0]), shape_yx, nearest=True)
    return np.dstack([types, resize(np.ascontiguousarray(pred_map[..., 1:]), shape_yx)])
