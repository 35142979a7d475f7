"""What tests of runs over images share: a manager whose network is the stub, painted images, and their results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stubs import disc_labels, painted_image, stubbed, write_rgb

from infer.tile import InferManager
from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """An eighth-width `fast` network without types."""
    path = tmp_path_factory.mktemp("weights") / "net.tar"
    save_weights(path, create_model("fast", width=0.125).state_dict())
    return path


@pytest.fixture(scope="session")
def loaded(weights) -> InferManager:
    """To be copied: to load a network takes longer than most runs of the stub."""
    return InferManager({"model_path": weights}, gpu="")


@pytest.fixture
def manager(loaded) -> InferManager:
    """A manager whose network is the stub."""
    return stubbed(loaded)


def run(manager, folder: Path, **options):
    defaults = {"nr_inference_workers": 0, "nr_post_proc_workers": 0}
    return manager.process_file_list({**defaults, "input_dir": folder / "in", "output_dir": folder / "out", **options})


def read_nuclei(folder: Path, name: str) -> dict:
    return json.loads((folder / "out" / "json" / f"{name}.json").read_text())["nuc"]


def paint(folder: Path, name: str, shape=(200, 300), **kwargs) -> np.ndarray:
    labels = disc_labels(shape, **kwargs)
    write_rgb(folder / "in" / name, painted_image(labels))
    return labels
