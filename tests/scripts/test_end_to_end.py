"""From contours to scores with the project's own commands, on real images and a narrow network."""

from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import scipy.io
import torch
from conftest import ROOT
from stubs import write_rgb

import compute_stats
import extract_patches
import GenerateMasks
import run_infer
import run_train
from models.hovernet import opt_scratch
from models.hovernet.net_desc import create_model
from models.hovernet.post_proc import measure
from models.hovernet.targets import gen_targets
from models.hovernet.train_step import train_step

CONFIG = """
from models.hovernet import opt_scratch

class Config:
    def __init__(self):
        self.seed, self.logging, self.debug, self.type_classification = 1, True, True, True
        self.dataset_name, self.log_dir = "mat", {log_dir!r}
        self.train_dir_list, self.valid_dir_list = [{patches!r}], [{patches!r}]
        self.valid_image_dir_list = []
        self.meta = {{"mpp": 0.5}}
        sides = {{"input_shape": [176] * 2, "mask_shape": [84] * 2}}  # half the work of the original's
        self.shape_info = {{"train": sides, "valid": sides}}
        self.model_config = opt_scratch.get_config(3, "fast")
        for phase in self.model_config["phase_list"]:
            phase["batch_size"] = {{"train": 1, "valid": 8}}
        self.model_config["phase_list"][0]["run_info"]["net"]["pretrained"] = {weights!r}
        self.model_config["run_engine"]["train"]["stain_jitter"] = False
"""


# (epochs, learning rate): four steps an epoch, on four patches
PHASES = ((1, 2e-3), (1, 1e-3))
SIDE = 384  # px of a patch at 40x that is read at 20x; what comes out is 100 px wide
SHIPPED = ROOT / "pretrained" / "hovernet_fast_w025_20x.tar"


def losses(log_dir) -> list[float]:
    """The loss of every step."""
    with open(log_dir / "steps.csv", newline="") as handle:
        return [float(row["overall_loss"]) for row in csv.DictReader(handle)]


def printed_scores(capsys, row: str, arguments: list[str]) -> list[float]:
    """Return the numbers of a row of the table that `compute_stats.py` prints."""
    capsys.readouterr()
    assert compute_stats.main(arguments) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(row))
    return [float(number) for number in line.removeprefix(row).split()]


def prepare(folder, kumar) -> None:
    """Two crops of real images at 20x, with contours as QuPath writes them; large nuclei are of class `large`."""
    for name in ("TCGA-18-5592-01Z-00-DX1", "TCGA-E2-A14V-01Z-00-DX1"):
        split = "Train" if name.startswith("TCGA-18") else "Test_same"
        image = cv2.imread(str(kumar / split / "Images" / f"{name}.png"))[:600, :320, ::-1]
        labels = scipy.io.loadmat(kumar / split / "Labels" / f"{name}.mat")["inst_map"][:600, :320]
        write_rgb(folder / "images" / f"{name}.png", cv2.resize(image, (160, 300), interpolation=cv2.INTER_AREA))
        nuclei = measure(np.ascontiguousarray(labels[::2, ::2], np.int32))
        features = []
        for index in range(len(nuclei)):
            ring = (nuclei.contour(index) + 0.5).tolist()
            kind = "large" if len(ring) > 14 else "small"
            geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
            features.append({"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": kind}}})
        (folder / "contours").mkdir(exist_ok=True)
        (folder / "contours" / f"{name}.geojson").write_text(json.dumps(features))
    (folder / "types.json").write_text(
        '{"0": ["none", [0, 0, 0]], "1": ["small", [9, 0, 0]], "2": ["large", [0, 9, 0]]}'
    )


def test_contours_to_scores(tmp_path, kumar, capsys, monkeypatch):
    """The checkpoint that ships learns types in two phases; what is scored was trained on."""
    monkeypatch.setattr(opt_scratch, "PHASES", PHASES)
    prepare(tmp_path, kumar)
    places = [f"--image_dir={tmp_path / 'images'}", f"--annotation_dir={tmp_path / 'contours'}"]
    labels = tmp_path / "labels"
    assert GenerateMasks.main([*places, f"--output_dir={labels}", f"--type_info_path={tmp_path / 'types.json'}"]) == 0
    arguments = ["--dataset=mat", "--type", f"--img_dir={tmp_path / 'images'}", f"--ann_dir={labels}", "--mode=fast"]
    assert extract_patches.main([*arguments, f"--save_root={tmp_path / 'patches'}"]) == 0
    folder = tmp_path / "patches" / "mat" / "train" / "540x540_164x164"
    assert len(list(folder.glob("*.npy"))) == 4

    log_dir = tmp_path / "logs"
    (tmp_path / "config_run.py").write_text(
        CONFIG.format(log_dir=str(log_dir), patches=str(folder), weights=str(SHIPPED))
    )
    options = {"--gpu": "", "--resume": False, "--seed": None, "--view": None, "--no_report": True}
    run_train.run({**options, "--config": str(tmp_path / "config_run.py")})
    first, second = (losses(log_dir / phase) for phase in ("00", "01"))
    assert (len(first), len(second)) == tuple(4 * nr_epochs for nr_epochs, _ in PHASES)
    assert np.mean(second) < 0.9 * np.mean(first)

    checkpoint = log_dir / "01" / f"net_epoch={PHASES[1][0]}.tar"
    run = ["--gpu=", f"--model_path={checkpoint}", "--nr_post_proc_workers=0"]
    output = tmp_path / "out"
    assert run_infer.main([*run, "tile", f"--input_dir={tmp_path / 'images'}", f"--output_dir={output}"]) == 0
    scored = [f"--pred_dir={output / 'mat'}", f"--true_dir={labels}"]
    dice, aji, dq, sq, pq, aji_plus = printed_scores(capsys, "mean of 2", ["--mode=instance", *scored])
    assert dice > 0.6  # everything taken for one nucleus would score 0.42, nothing found 0
    assert min(aji, dq, sq, pq, aji_plus) > 0.1
    assert np.isfinite(printed_scores(capsys, "all images", ["--mode=type", *scored])).all()
    assert compute_stats.main([f"--pred_dir={labels}", f"--true_dir={output / 'mat'}"]) == 1
    assert "are --true_dir and --pred_dir swapped?" in capsys.readouterr().err


def test_a_network_learns_one_real_patch_by_heart(kumar):
    """Some hundred steps on one patch: Dice over 0.9, and an HV branch that has learned, too."""
    name = "TCGA-18-5592-01Z-00-DX1"
    image = cv2.imread(str(kumar / "Train" / "Images" / f"{name}.png"))[:SIDE, :SIDE, ::-1]
    labels = scipy.io.loadmat(kumar / "Train" / "Labels" / f"{name}.mat")["inst_map"][:SIDE:2, :SIDE:2].astype(np.int32)
    image = cv2.resize(image, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA)
    sample = {"img": image, **gen_targets(labels, (100, 100))}
    batch = {key: torch.from_numpy(np.ascontiguousarray(value)[None]) for key, value in sample.items()}
    torch.manual_seed(0)
    net = create_model("fast", width=0.125).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    loss = {"np": {"bce": 1, "dice": 1}, "hv": {"mse": 2, "msge": 1}}
    extra = {"loss": loss, "msge_axis": "paper", "clip_grad_norm": 5.0}
    run_info = [{"net": {"desc": net, "optimizer": optimizer, "extra_info": extra}}, {"epoch": 0, "step": 0}]
    spread = float(batch["hv_map"].var())
    for _step in range(150):
        result = train_step(batch, run_info)
        true, pred = (value.cpu().numpy() for value in result["raw"]["np"])
        dice = 2 * ((pred > 0.5) & (true > 0)).sum() / ((pred > 0.5).sum() + (true > 0).sum())
        if dice > 0.92 and result["EMA"]["loss_hv_mse"] < 0.75 * spread:
            break
    assert dice > 0.9
    assert result["EMA"]["loss_hv_mse"] < 0.8 * spread
