"""Degraded images are blurred and darkened by what their row says; labels stay."""

from __future__ import annotations

import cv2
import imageio.v3 as imageio
import numpy as np
import pytest
import scipy.io
from conftest import ROOT

from benchmarks import degraded
from benchmarks.synthetic import nuclei_labels, tissue_like_image

CHECKPOINT = ROOT / "pretrained" / "hovernet_fast_w025_20x.tar"
SIDE_PX = 200


@pytest.fixture
def folder(tmp_path):
    labels = nuclei_labels(SIDE_PX)
    for part in ("Images", "Labels"):
        (tmp_path / "he" / part).mkdir(parents=True)
    imageio.imwrite(tmp_path / "he" / "Images" / "a.png", tissue_like_image(labels, 0))
    scipy.io.savemat(tmp_path / "he" / "Labels" / "a.mat", {"inst_map": labels})
    return tmp_path / "he"


def test_images_are_darkened_then_blurred(folder, tmp_path):
    image = imageio.imread(folder / "Images" / "a.png")
    squared = np.rint((image / 255.0) ** 2 * 255).astype(np.uint8)  # twice the density
    wanted = {
        (0, 1): image,
        (0, 2): squared,
        (2, 1): cv2.GaussianBlur(image, (0, 0), 2, borderType=cv2.BORDER_REPLICATE),
        (2, 2): cv2.GaussianBlur(squared, (0, 0), 2, borderType=cv2.BORDER_REPLICATE),
    }
    for (sigma, density), expected in wanted.items():
        out = tmp_path / f"{sigma}_{density}"
        out.mkdir()
        degraded.degrade(folder, out, sigma, density)
        np.testing.assert_array_equal(imageio.imread(out / "Images" / "a.png"), expected)
        assert (out / "Labels" / "a.mat").read_bytes() == (folder / "Labels" / "a.mat").read_bytes()


def test_each_way_has_a_row(folder, monkeypatch, capsys):
    command = ["degraded.py", f"--model_path={CHECKPOINT}", "--mpp=0.25", "--sigma_px=30", "--gpu=", str(folder)]
    monkeypatch.setattr("sys.argv", command)
    assert degraded.main() == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " | 0." in line]
    names = ["as they are", "blurred, 30 px", "1.6 times as dense", "1.6 times as dense, blurred, 30 px"]
    assert [row[0].removeprefix("| ") for row in rows] == names
    sharp, blurred, _, both = (float(row[1].strip(" |")) for row in rows)
    assert sharp > 0.3
    assert blurred == both == 0  # nothing can be seen
