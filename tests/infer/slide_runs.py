"""What tests of slide runs share: a manager whose network is the stub, painted slides, and how results are compared."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from stubs import disc_labels, painted_image, stubbed, write_rgb

import infer.wsi
from infer.spool import Spool
from infer.wsi import InferManager
from misc.slides.tissue import whole_mask
from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model

BLOCKS = {"tile_shape": 128, "ambiguous_size": 40}
ENOUGH_S = 120  # no test comes near it; one that hangs ends there


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(1)  # one whose nuclei, found in noise, are many
    path = tmp_path_factory.mktemp("weights") / "net.tar"
    save_weights(path, create_model("fast", width=0.125).state_dict())
    return path


@pytest.fixture(scope="session")
def loaded(weights) -> InferManager:
    """To be copied: to load a network takes longer than most runs of the stub."""
    return InferManager({"model_path": weights}, gpu="")


@pytest.fixture
def manager(loaded, monkeypatch) -> InferManager:
    """A manager whose network is the stub, on slides of which every pixel is tissue."""
    monkeypatch.setattr(infer.wsi, "otsu_mask", lambda thumb: whole_mask())
    return stubbed(loaded)


def run(manager, folder: Path, out: str = "out", **options):
    defaults = {"nr_inference_workers": 1, "nr_post_proc_workers": 0, "mag": 40, "batch_size": 4}
    places = {"input_dir": folder / "in", "output_dir": folder / out}
    return manager.process_wsi_list({**defaults, **places, **options})


def stop_after(monkeypatch, blocks: int) -> None:
    """End runs as Ctrl-C does once so many blocks are in the spool."""
    write, written = Spool.write, []

    def interrupted(self, part):
        if len(written) == blocks:
            raise KeyboardInterrupt
        write(self, part)
        written.append(part.block)

    monkeypatch.setattr(Spool, "write", interrupted)


def interrupted_run(manager, folder, blocks: int, out: str = "out", **options) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, blocks)
        with pytest.raises(KeyboardInterrupt):
            run(manager, folder, out, **{**BLOCKS, **options})


def nuclei_of(folder: Path, name: str = "a", out: str = "out") -> dict:
    return json.loads((folder / out / "json" / f"{name}.json").read_text())["nuc"]


def nuclei_set(folder: Path, name: str = "a", out: str = "out") -> Counter:
    """Return all that is known of the nuclei but their ids, which may differ."""
    nuclei = Counter(json.dumps(nucleus) for nucleus in nuclei_of(folder, name, out).values())
    assert nuclei, "comparing nothing with nothing"
    return nuclei


def spooled(folder: Path, out: str = "out") -> list[Path]:
    return sorted((folder / out).rglob("*.npz"))


def leftovers(folder: Path, out: str = "out") -> list[Path]:
    """Return what is no result: spools, half-written files, locks."""
    return sorted((folder / out).rglob(".*"))


def summary(folder: Path, out: str = "out") -> dict[str, dict]:
    with open(folder / out / "summary.csv") as handle:
        return {row["slide"]: row for row in csv.DictReader(handle)}


def paint(folder: Path, name: str = "a.png", shape=(300, 420), **kwargs) -> np.ndarray:
    labels = disc_labels(shape, **kwargs)
    write_rgb(folder / "in" / name, painted_image(labels))
    return labels


def filled(nuclei: dict, shape) -> np.ndarray:
    """Paint outlines; every pixel must be free."""
    labels = np.zeros(shape, np.int32)
    for key, info in nuclei.items():
        xy = np.array(info["contour"])
        (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0) + 1
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(mask, [xy - (x0, y0)], 1)
        window = labels[y0:y1, x0:x1]
        assert not window[mask > 0].any(), "two nuclei overlap"
        window[mask > 0] = int(key)
    return labels


def same_nuclei(expected: np.ndarray, found: np.ndarray, iou: float = 0.99) -> None:
    """Every nucleus is there once, at an IoU above a limit."""
    sizes, found_sizes = np.bincount(expected.ravel()), np.bincount(found.ravel())
    assert np.count_nonzero(sizes[1:]) == np.count_nonzero(found_sizes[1:])
    pairs, shared = np.unique(expected.ravel().astype(np.int64) * len(found_sizes) + found.ravel(), return_counts=True)
    one, other = pairs // len(found_sizes), pairs % len(found_sizes)
    best = np.zeros(len(sizes))
    np.maximum.at(best, one, np.where(other > 0, shared / (sizes[one] + found_sizes[other] - shared), 0))
    assert best[1:][sizes[1:] > 0].min(initial=1) > iou
