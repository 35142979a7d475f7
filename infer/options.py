"""Options of inference, as typed values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from misc.files import printable, unusable_name

# Micrometres per pixel that a network reads when its checkpoint does not say: the published ones are 40x.
DEFAULT_MPP = 0.25
_FOLDERS = ("input_dir", "output_dir", "cache_path", "input_mask_dir")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What tile and slide runs have in common; the text of `run_infer.py --help` explains each."""

    input_dir: Path
    output_dir: Path
    batch_size: int = 32
    nr_inference_workers: int = 8
    nr_post_proc_workers: int = 16
    patch_input_shape: int | None = None
    patch_output_shape: int | None = None
    mpp: float | None = None
    save_qupath: bool = False
    save_type_probs: bool = False
    overwrite: bool = False

    @classmethod
    def from_dict(cls, run_args: Mapping[str, Any]):
        """Build from a plain dictionary, as downstream code passes it.

        Raises:
            ValueError: an option is unknown, missing, or out of range.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(run_args) - known)
        if unknown:
            raise ValueError(f"unknown run options {unknown}; known are {sorted(known)}")
        missing = [name for name in ("input_dir", "output_dir") if not run_args.get(name)]
        if missing:
            raise ValueError(f"run options {missing} are missing")
        paths = {name: Path(run_args[name]) if run_args[name] else None for name in _FOLDERS if name in run_args}
        return cls(**{**run_args, **paths})

    def __post_init__(self):
        for name in _FOLDERS:
            folder = Path(getattr(self, name, None) or "").absolute()
            if reason := unusable_name(folder):
                raise ValueError(f"--{name}={printable(folder)}: {reason}")
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be 1 or more, got {self.batch_size}")
        for name in ("nr_inference_workers", "nr_post_proc_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be 0 or more, got {getattr(self, name)}")
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            raise ValueError(f"--mpp must be a positive number of micrometres per pixel, got {self.mpp}")


@dataclass(frozen=True, kw_only=True)
class TileOptions(RunOptions):
    """Options of `run_infer.py tile`."""

    mem_usage: float = 0.2
    draw_dot: bool = False
    save_raw_map: bool = False
    line_thickness: int = 2
    pattern: str = "*"
    recursive: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mem_usage < 1:
            raise ValueError(f"--mem_usage is a share of the free memory between 0 and 1, got {self.mem_usage}")
        if self.line_thickness < 1:
            raise ValueError(f"--line_thickness must be 1 px or more, got {self.line_thickness}")


@dataclass(frozen=True, kw_only=True)
class WsiOptions(RunOptions):
    """Options of `run_infer.py wsi`; `mpp` and `mag` are the slide's own, where the file is wrong or silent."""

    cache_path: Path | None = None
    input_mask_dir: Path | None = None
    proc_mag: float | None = None
    mag: float | None = None
    ambiguous_size: int = 128
    chunk_shape: int = 10000
    tile_shape: int = 2048
    save_thumb: bool = False
    save_mask: bool = False
    pattern: str = "*"
    recursive: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("proc_mag", "mag"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"--{name} must be a positive magnification, got {getattr(self, name)}")
        for name, least in (("chunk_shape", 1), ("tile_shape", 1), ("ambiguous_size", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be {least} px or more, got {getattr(self, name)}")
