"""The data of a training run: its patches and validation images, their checks, and the loaders of patches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dataloader.train_loader import FileLoader
from models.hovernet.post_proc import PostProc

from . import distributed
from .checks import (
    check_patches,
    describe_unknown,
    folder_weights,
    list_patches,
    type_sampling_weights,
)
from .held_out import describe_overlap
from .loaders import build_loader
from .sampling import EpochBatchSampler
from .validate import ImageValidator, check_pairs, find_pairs


class TrainingData:
    """The patches and validation images that a `Config` names.

    Args:
        config: a `config.Config`, or anything with its attributes.
        nr_types: of the network, background included; `None` without types.
        post_proc: how nuclei are found in whole validation images.

    Attributes:
        files: patches of `train` and of `valid`.
        image_validator: scores whole images; `None` if the configuration names none.
    """

    def __init__(self, config, nr_types: int | None, post_proc: PostProc):
        self.config = config
        self.nr_types = nr_types
        self.post_proc = post_proc
        self.files: dict[str, list[Path]] = {}
        self.image_validator: ImageValidator | None = None
        self._type_counts: dict[str, np.ndarray | None] = {}  # (N, K) pixels by patch and type, unknown type last
        self._weights: np.ndarray | None = None  # how often each training patch is drawn

    def prepare(self, devices: list[torch.device], say: Callable[[str], None]) -> None:
        """List and check all data.

        Args:
            devices: named in the first line.
            say: called with each line about the data.

        Raises:
            FileNotFoundError, ValueError: a folder or a label is missing, or training cannot use a file.
        """
        for name in ("train", "valid"):
            self.find(name)
        self._find_images(say)
        names = ", ".join(str(device) for device in devices)
        say(f"{len(self.files['train'])} training and {len(self.files['valid'])} validation patches, on {names}")
        if self.nr_types is not None:
            restain = self.config.model_config["run_engine"]["train"].get("restain") or {}
            if unknown := describe_unknown(self._type_counts["train"], bool(restain.get("classes"))):
                say(unknown)
        if devices[0].type == "cpu":
            say("no GPU: training on the CPU; the time of an epoch is printed after a few steps")
        whole = [pair.image for pair in self.image_validator.pairs] if self.image_validator else []
        for line in distributed.on_main(describe_overlap, self.files["train"], self.files["valid"], whole):
            say(line)

    def find(self, name: str) -> None:
        """List and check the patches of `train` or `valid`; errors as of `prepare`."""
        folders = getattr(self.config, f"{name}_dir_list")
        self.files[name] = list_patches(folders, f"{name}_dir_list")
        weights = folder_weights(folders, self.files[name], f"{name}_dir_list")
        if name == "train":
            self._weights = weights
        elif weights is not None:
            raise ValueError(f"{name}_dir_list in config.py has weights; only train_dir_list may have them")
        self._type_counts[name] = check_patches(self.files[name], self.nr_types, show=distributed.is_main())

    def _find_images(self, say: Callable[[str], None]) -> None:
        folders = getattr(self.config, "valid_image_dir_list", [])
        if not folders:
            return
        pairs = find_pairs(folders)
        untyped = check_pairs(pairs, self.nr_types)
        if untyped and self.nr_types is not None:
            say(f"types of whole validation images are not scored: {untyped}")
        scale = getattr(self.config, "valid_image_scale", 1.0)
        self.image_validator = ImageValidator(pairs, scale, with_types=not untyped, post_proc=self.post_proc)

    def loader(self, name: str, opt: dict, engine: dict, seed: int, devices: list[torch.device], process):
        """Return the loader of `train` or `valid`.

        Args:
            name: `train` or `valid`.
            opt: an entry of the recipe's `phase_list`.
            engine: the entry of this name in the recipe's `run_engine`.
            seed: of the order and of the augmentation.
            devices: the devices of this process; each takes `batch_size` patches of a batch.
            process: this process's place among those of torchrun.
        """
        training = name == "train"
        weights = self._weights if training else None
        if training and engine.get("type_sampling") is not None and self._type_counts["train"] is not None:
            by_type = type_sampling_weights(self._type_counts["train"][:, :-1], engine["type_sampling"])
            weights = by_type if weights is None else weights * by_type
        dataset = FileLoader(
            self.files[name],
            mode=name,
            with_type=self.nr_types is not None,
            target_gen=opt["target_info"]["gen"],
            seed=seed,
            stain_jitter=training and engine.get("stain_jitter", False),
            defocus=training and engine.get("defocus", False),
            restain=engine.get("restain"),
            **self.config.shape_info[name],
        )
        sampler = EpochBatchSampler(
            len(dataset),
            opt["batch_size"][name] * len(devices),
            seed,
            training,
            process.rank,
            process.world_size,
            weights,
        )
        nr_procs = 0 if self.config.debug else engine["nr_procs"]
        return build_loader(dataset, sampler, nr_procs, devices[0].type == "cuda")
