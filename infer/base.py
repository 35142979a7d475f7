"""What tile and slide inference share: the network on its devices, names and colours of types."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from misc.files import file_digest
from misc.formats.nuclei_json import types_to_header
from misc.type_info import TypeInfo, default_type_info, load_type_info
from models.hovernet.checkpoint import build_model, check_options, load_checkpoint
from models.hovernet.net_desc import PATCH_SHAPES, output_size

from .options import DEFAULT_MPP, RunOptions
from .predictor import Predictor, parse_devices

logger = logging.getLogger(__name__)

VERSION = "1.0.0"


@dataclass
class Report:
    """What became of every input.

    Attributes:
        done, skipped, failed: names; those skipped were there already, those that failed have a reason.
        found: number of nuclei of each type (`None` without types) in what was done.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    found: Counter = field(default_factory=Counter)

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


class InferManager:
    """Loads a checkpoint and says what it is.

    Args:
        method: `{"model_path": ..., "model_args": {"nr_types": ..., "mode": ...}}`; `model_args` and each of its
            entries may be left out, they are then read off the checkpoint.
        type_info_path: `type_info.json`; without it the names and colours come from the checkpoint's `meta`, or
            from a default palette.
        gpu: comma-separated ids, empty for the CPU.
        precision: `auto`, `fp32`, `bf16` or `fp16`.

    Raises:
        FileNotFoundError: checkpoint or type file are missing.
        ValueError: they cannot be used, or contradict what was asked for.
    """

    def __init__(
        self,
        method: Mapping[str, Any],
        type_info_path: str | Path | None = None,
        gpu: str = "0",
        precision: str = "auto",
    ):
        model_args = method.get("model_args", {})
        asked_types = model_args.get("nr_types")
        self.checkpoint = load_checkpoint(method["model_path"])
        check_options(self.checkpoint, model_args.get("mode"), asked_types)
        self.mode, self.nr_types = self.checkpoint.mode, self.checkpoint.nr_types
        self.net = build_model(self.checkpoint)
        self.devices = parse_devices(gpu)
        self.precision = precision
        self.type_info_dict = self._type_info(type_info_path)
        logger.info(
            "%s: `%s`, %s, width %g, on %s",
            self.checkpoint.path.name,
            self.mode,
            f"{self.nr_types} types" if self.nr_types else "no types",
            self.checkpoint.width,
            ", ".join(str(device) for device in self.devices),
        )

    @property
    def model_mpp(self) -> float:
        """Micrometres per pixel that the network was trained at."""
        return float(self.checkpoint.meta.get("mpp") or DEFAULT_MPP)

    @cached_property
    def checkpoint_id(self) -> str:
        """Name of the checkpoint's file, and the start of its SHA-256."""
        path = self.checkpoint.path
        return f"{path.name} {file_digest(path)}"

    def predictor(self, options: RunOptions) -> Predictor:
        """Put the network on its devices for a run."""
        return Predictor(self.net, self.devices, options.batch_size, self.precision, options.save_type_probs)

    def patch_shapes(self, options: RunOptions) -> tuple[int, int]:
        """Return (input, output) side of a patch in px: the mode's own, or those of a larger window.

        Raises:
            ValueError: the network cannot take that window, or the two do not belong together.
        """
        size = options.patch_input_shape or PATCH_SHAPES[self.mode][0]
        out = output_size(self.mode, size)
        if options.patch_output_shape not in (None, out):
            raise ValueError(
                f"a window of {size} px gives {out} px in mode `{self.mode}`, not {options.patch_output_shape}"
            )
        return size, out

    def header(self, **extra) -> dict[str, Any]:
        """Return what the result files say of how they were made."""
        return {
            **extra,
            "types": types_to_header(self.type_info_dict),
            "model": self.checkpoint.path.name,
            "version": VERSION,
        }

    def _type_info(self, path: str | Path | None) -> TypeInfo:
        if path:
            return load_type_info(path, self.nr_types)
        info = default_type_info(self.nr_types)
        for type_id, (name, rgb) in self.checkpoint.meta.get("types", {}).items():
            info[int(type_id)] = (str(name), tuple(int(v) for v in rgb))
        return info
