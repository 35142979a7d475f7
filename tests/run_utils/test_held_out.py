"""A run says which images it both trains on and validates on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from misc.slides.images import read_image
from run_utils import held_out
from run_utils.held_out import describe_overlap


@pytest.fixture
def files(kumar, tmp_path):
    """Patches of two images; the first image's under other names too, and as a whole image."""
    first, second = (read_image(path) for path in sorted((kumar / "Train" / "Images").glob("*.png"))[:2])

    def patches(name: str, image: np.ndarray) -> list:
        paths = []
        for number, start in enumerate((0, 230, 460)):
            paths.append(tmp_path / f"{name}_{number:03d}.npy")
            patch = np.dstack([image[start : start + 540, start : start + 540], np.zeros((540, 540))])
            np.save(paths[-1], patch.astype(np.uint16))
        return paths

    cv2.imwrite(str(tmp_path / "first.png"), first[..., ::-1])
    cv2.imwrite(str(tmp_path / "renamed.png"), first[..., ::-1])
    return {
        "first": patches("first", first),
        "again": patches("other", first),
        "second": patches("second", second),
        "image": tmp_path / "first.png",
        "renamed": tmp_path / "renamed.png",
    }


def test_names_and_pictures_are_compared(files):
    assert describe_overlap(files["first"], files["second"], []) == []
    by_name = ["warning: in both training and validation: 1 image (first, ...)"]
    assert describe_overlap(files["first"], files["first"], []) == by_name
    assert describe_overlap(files["first"], files["second"], [files["image"]]) == by_name
    for line in (
        describe_overlap(files["first"] + files["second"], files["again"], []),
        describe_overlap(files["again"], files["second"], [files["renamed"]]),
    ):
        assert len(line) == 1
        assert line[0].startswith("warning: 1 validation picture of tissue that is also in training (")


def test_many_pictures_are_compared_by_name_alone(files, monkeypatch):
    monkeypatch.setattr(held_out, "MAX_PAIRS", 0)
    assert describe_overlap(files["first"], files["again"], []) == []
    assert len(describe_overlap(files["first"], files["first"], [])) == 1
