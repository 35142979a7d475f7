"""From patches on disk to samples for a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from misc.type_info import UNKNOWN_TYPE
from misc.utils import cropping_center

from . import augs
from .restain import CLASS_COUNTS, restain

# Types that imgaug's OpenCV backend transforms without converting them to float64.
_FAST_TYPES = (np.uint8, np.uint16, np.int16)


class FileLoader(Dataset):
    """Loads patches, augments them, and makes the training targets.

    A sample depends on the seed, the epoch, its number, and how often the epoch had it before: not on the worker that
    loads it, nor on the samples before it. So a resumed run gets the same batches.

    Args:
        file_list: `.npy` patches (H, W, 4) [R, G, B, instance] or (H, W, 5) with types.
        with_type: whether samples have a `tp_map`; nuclei of patches without types are `UNKNOWN_TYPE` in it.
        input_shape: (h, w) of the network's input.
        mask_shape: (h, w) of its output.
        mode: `train` augments, `valid` crops the centre. Both reflect patches that are too small at their edges, so
            that no sample has black corners.
        setup_augmentor: not used; kept for old callers.
        target_gen: (function, keyword arguments) that makes `np_map` and `hv_map` from (instances, mask_shape).
        seed: of the augmentation.
        stain_jitter: also change the amounts of the stains, see `augs.train_input_augs`.
        defocus: also blur some samples as a slide out of focus is blurred, see `augs.train_input_augs`.
        restain: `{"share": 0.6, "classes": 2, "mpp": 0.5}` re-stains that share of the samples with haematoxylin and
            DAB, see `dataloader.restain`. Their types are then the 2 or 4 DAB classes; with `"classes": None` they
            stay those of the patch.

    Raises:
        ValueError: unknown `mode`, or `input_shape`, `mask_shape` or `target_gen` is missing.
    """

    def __init__(
        self,
        file_list: Sequence[str | Path],
        with_type: bool = False,
        input_shape: Sequence[int] | None = None,
        mask_shape: Sequence[int] | None = None,
        mode: str = "train",
        setup_augmentor: bool = True,
        target_gen: tuple[Callable, dict] | None = None,
        seed: int = 0,
        stain_jitter: bool | dict = False,
        restain: dict | None = None,
        defocus: bool | dict = False,
    ):
        if mode not in ("train", "valid"):
            raise ValueError(f"mode must be `train` or `valid`, got `{mode}`")
        if input_shape is None or mask_shape is None or target_gen is None:
            raise ValueError("FileLoader needs input_shape, mask_shape and target_gen")
        self.info_list = list(file_list)
        self.with_type = with_type
        self.input_shape = tuple(input_shape)
        self.mask_shape = tuple(mask_shape)
        self.mode = mode
        self.target_gen_func, self.target_gen_kwargs = target_gen
        self.stain_jitter = stain_jitter
        self.defocus = defocus
        self.restain = restain
        self.seed = seed
        self.epoch = self.occurrence = 0
        self.shape_augs = self.input_augs = self.restained_augs = None
        self.setup_augmentor(0, seed)

    def setup_augmentor(self, worker_id: int, seed: int) -> None:
        """Make the augmentation pipelines; `worker_id` is not used."""
        self.seed = seed
        if self.mode == "train":
            self.shape_augs = augs.train_shape_augs(self.input_shape)
            self.input_augs = augs.train_input_augs(self.stain_jitter, self.defocus)
            # no stain jitter: it turns haematoxylin brown, so re-stained nuclei would leave their class
            self.restained_augs = augs.train_input_augs(stain_jitter=False, defocus=self.defocus)
            self.least_shape = (augs.reach(self.input_shape),) * 2
        else:
            self.shape_augs, self.input_augs = augs.valid_shape_augs(self.input_shape), None
            self.least_shape = self.input_shape

    def set_epoch(self, epoch: int, occurrence: int = 0) -> None:
        """Set the epoch, and how often it had the next sample before; both change the random numbers."""
        self.epoch, self.occurrence = epoch, occurrence

    def __len__(self) -> int:
        return len(self.info_list)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return one sample.

        Returns:
            `img` (H, W, 3) uint8, `np_map` (h, w) int32, `hv_map` (h, w, 2) float32 [x, y], and with types `tp_map`
            (h, w) int32.

        Raises:
            ValueError: the patch cannot be read.
        """
        patch = _read(self.info_list[index])
        place = (self.seed, self.epoch, index)
        if self.occurrence:
            place += (self.occurrence,)
        shape_seed, input_seed, stain_seed = np.random.SeedSequence(place).generate_state(3).tolist()
        # image and labels are in one array, so both get the same transformation
        self.shape_augs.seed_(shape_seed)
        patch = self.shape_augs.augment_image(_at_least(patch, self.least_shape))
        image = np.ascontiguousarray(patch[..., :3], np.uint8)
        labels = patch[..., 3:].astype(np.int32)
        input_augs, rng = self.input_augs, np.random.default_rng(stain_seed)
        if self.restain and rng.random() < self.restain["share"]:
            image, labels = _restained(image, labels, self.restain, rng)
            input_augs = self.restained_augs
        if input_augs is not None:
            input_augs.seed_(input_seed)
            image = input_augs.augment_image(image)
        sample = {"img": image}
        if self.with_type:
            types = labels[..., 1] if labels.shape[2] > 1 else np.where(labels[..., 0] > 0, UNKNOWN_TYPE, 0)
            sample["tp_map"] = np.ascontiguousarray(cropping_center(types, self.mask_shape), np.int32)
        sample.update(self.target_gen_func(labels[..., 0], self.mask_shape, **self.target_gen_kwargs))
        return sample


def _restained(
    image: np.ndarray, labels: np.ndarray, options: dict, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Re-stain a sample; with `classes` in `options`, the types in `labels`, (H, W, 1 or 2), become DAB classes."""
    nr_classes = options.get("classes")
    image, classes = restain(image, labels[..., 0], rng, nr_classes or CLASS_COUNTS[0], options["mpp"])
    if nr_classes:
        labels = np.stack([labels[..., 0], classes[labels[..., 0]]], axis=-1)
    return image, labels


def _read(path: str | Path) -> np.ndarray:
    """Read a patch; uint16, where it holds all values, makes augmentation faster."""
    try:
        patch = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no readable .npy array: {error}") from error
    if patch.ndim != 3 or patch.shape[2] < 4:
        raise ValueError(f"{path} has shape {patch.shape}; (H, W, 4) [R, G, B, inst] was expected")
    if patch.dtype in _FAST_TYPES:
        return patch
    return patch.astype(np.uint16 if patch.max(initial=0) < 2**16 else np.float64)


def _at_least(patch: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Enlarge a patch to at least (h, w) px by reflection at its edges, repeated if needed."""
    missing = [max(want - have, 0) for want, have in zip(shape, patch.shape, strict=False)]
    if not any(missing):
        return patch
    margins = [(side // 2, side - side // 2) for side in missing]
    return np.pad(patch, [*margins, (0, 0)], mode="symmetric")
