"""Training runs for tests: tiny networks on tiny patches, both phases, in this process or in one of their own."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import cv2
import numpy as np
import scipy.io
import torch
from warm_python import WarmPython

import run_train

ROOT = Path(run_train.__file__).parent
NR_TYPES = 3
CONFIG = '''
import hashlib
import os
import pathlib
import signal

from models.hovernet import opt
from models.hovernet.net_desc import create_model
from run_utils import distributed
from run_utils.callbacks.base import BaseCallbacks


class Digest(BaseCallbacks):
    """Write what each process' weights are."""

    def run(self, state, event):
        net = state.run_info["net"]["desc"]
        values = getattr(net, "module", net).state_dict().values()
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values))
        name = f"{{pathlib.Path(state.log_dir).name}}-{{state.curr_epoch}}-{{distributed.rank()}}"
        pathlib.Path({root!r}, "digest", name).write_text(digest.hexdigest())


class KillAt(BaseCallbacks):
    """Kill the process after a step of an epoch of a phase."""

    def __init__(self, phase, epoch, step):
        self.moment = phase, epoch, step

    def run(self, state, event):
        if (pathlib.Path(state.log_dir).name, state.curr_epoch, state.curr_epoch_step) == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_before_replacing(name):
    """Kill the process when a file is written, but not yet in its place."""
    replace = os.replace

    def kill(source, target):
        if str(target).endswith(name):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = kill


class Config:
    def __init__(self):
        self.seed, self.logging, self.debug, self.type_classification = 3, True, False, True
        self.dataset_name, self.log_dir = "squares", {log_dir!r}
        self.train_dir_list, self.valid_dir_list = [{train!r}], [{valid!r}]
        self.meta = {{"mpp": 0.5}}
        self.shape_info = {{k: {{"input_shape": [128, 128], "mask_shape": [36, 36]}} for k in ("train", "valid")}}
        self.model_config = opt.get_config(3, "fast")
        phases, engines = self.model_config["phase_list"], self.model_config["run_engine"]
        for index, phase in enumerate(phases):
            net = phase["run_info"]["net"]
            net["desc"] = lambda freeze=index == 0: create_model("fast", nr_types=3, freeze=freeze, width=0.125)
            net["pretrained"] = None if index == 0 else -1
            phase["nr_epochs"], phase["batch_size"] = 2, {{"train": 2, "valid": 2}}
        callbacks = engines["train"]["callbacks"]
        callbacks[opt.Events.EPOCH_COMPLETED].append(Digest())
        callbacks[opt.Events.STEP_COMPLETED][-1].per_n_step = 1  # a checkpoint in the middle of an epoch too
        engines["train"]["nr_procs"] = engines["valid"]["nr_procs"] = 0
        {edit}
'''


def write_patches(folder: Path, count: int, types: int = NR_TYPES) -> None:
    """Dark squares, all of one type in a patch, on a bright noisy ground."""
    rng = np.random.default_rng(len(folder.name))
    folder.mkdir(parents=True)
    for index in range(count):
        patch = np.zeros((150, 150, 5), np.int16)
        patch[..., :3] = rng.integers(200, 255, (150, 150, 3))
        for nucleus, (y, x) in enumerate(rng.integers(20, 110, (8, 2)), 1):
            patch[y : y + 14, x : x + 14] = [90, 50, 120, nucleus, 1 + index % (types - 1)]
        np.save(folder / f"{folder.name}{index}_000.npy", patch)


def make_project(root: Path, nr_train: int = 3, log_dir: str = "logs", edit: str = "", types: int = NR_TYPES) -> Path:
    """Return a configuration file with its data."""
    if not (root / "train").exists():
        write_patches(root / "train", nr_train, types)
        write_patches(root / "valid", 3)
        (root / "digest").mkdir()
    path = root / f"config_{log_dir}.py"
    places = {"root": str(root), "train": str(root / "train"), "valid": str(root / "valid")}
    path.write_text(CONFIG.format(**places, log_dir=str(root / log_dir), edit=edit))
    return path


def run_here(config: Path, *options: str) -> None:
    """Run in this process, which has torch already; one thread, as in the processes that are started."""
    arguments = {
        "--gpu": "",
        "--resume": "--resume" in options,
        "--seed": None,
        "--view": None,
        "--config": str(config),
        "--no_report": True,  # `start` runs make one
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_train.run(arguments)
    finally:
        torch.set_num_threads(threads)


def start(command: list[str], python: WarmPython) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([python.bin / "python", *command], cwd=ROOT, env=python.environ, **pipes)


def steps(log_dir: Path) -> list[list[str]]:
    with open(log_dir / "steps.csv", newline="") as handle:
        return list(csv.reader(handle))


def write_images(folder: Path) -> Path:
    """A folder for `valid_image_dir_list` with one image, `a.png`; returns its path."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(200, 255, (100, 90, 3)), np.zeros((100, 90), np.int32)
    for nucleus, (y, x) in enumerate(rng.integers(5, 70, (6, 2)), 1):
        image[y : y + 14, x : x + 14], label[y : y + 14, x : x + 14] = (120, 50, 90), nucleus
    for name in ("Images", "Labels"):
        (folder / name).mkdir(parents=True)
    cv2.imwrite(str(folder / "Images" / "a.png"), image.astype(np.uint8))
    scipy.io.savemat(folder / "Labels" / "a.mat", {"inst_map": label})
    return folder / "Images" / "a.png"
