"""What tests of cohorts share: tiny slides, a small network, and how results are compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tifffile
import torch

from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model

FIRST = ("--gpu=", "--nr_post_proc_workers=0", "--nr_inference_workers=1")


def save_network(path: Path) -> Path:
    """An eighth-width network that says it was trained at 20x."""
    torch.manual_seed(5)  # one that finds nuclei in noise
    save_weights(path, create_model("fast", width=0.125).state_dict(), {"mpp": 0.5})
    return path


def write_slide(path: Path, seed: int = 0, mpp: float | None = 0.5) -> None:
    """A slide of one patch at 20x, with a dark square on glass; without its pixel size where `mpp` is `None`."""
    image = np.full((160, 164, 3), 245, np.uint8)
    image[10:150, 20:144] = np.random.default_rng(seed).integers(60, 200, (140, 124, 3))
    says = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": 3} if mpp else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, photometric="rgb", tile=(128, 128), **says)


def nuclei_of(out: Path) -> dict[str, list[dict]]:
    """Return the nuclei of all slides, by name."""
    files = sorted((out / "json").glob("*.json"))
    return {path.stem: list(json.loads(path.read_text())["nuc"].values()) for path in files}
