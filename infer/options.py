"""Options of inference, as typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

# Micrometres per pixel that a network reads when its checkpoint does not say: the published ones are 40x.
DEFAULT_MPP = 0.25


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
        paths = {name: Path(run_args[name]) for name in ("input_dir", "output_dir")}
        return cls(**{**run_args, **paths})

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be 1 or more, got {self.batch_size}")
        for name in ("nr_inference_workers", "nr_post_proc_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be 0 or more, got {getattr(self, name)}")
        if self.mpp is not None and not self.mpp > 0:
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
