"""What the accuracy benchmark refuses, and its interval."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import accuracy
from metrics.typed import TypedCounts


def test_p48_images_that_were_trained_on_are_not_scored(tmp_path):
    """A published checkpoint was trained on all of its data set; a score of it there says nothing."""
    (tmp_path / "Images").mkdir()
    for name in ("TCGA-A7-A13E-01Z-00-DX1.png", "new.png"):
        (tmp_path / "Images" / name).touch()
    meta = {"images": {"train": ["TCGA-A7-A13E-01Z-00-DX1"]}}
    manager = SimpleNamespace(checkpoint=SimpleNamespace(meta=meta))
    with pytest.raises(ValueError, match="says that 1 images of .* were in training: TCGA-A7-A13E"):
        accuracy.score_folder(manager, tmp_path, {})


def test_the_interval_is_of_the_mean_over_images():
    values = np.array([[0.5] * 10, [0.0, 1.0] * 5, [np.nan, 0.4] * 5])
    mean, low, high = accuracy.interval(values, 2000)
    assert mean.tolist() == [0.5, 0.5, pytest.approx(0.4)]
    assert (low[0], high[0]) == (0.5, 0.5)
    # the mean of ten coin flips has a standard deviation of 0.158
    assert low[1] == pytest.approx(0.2, abs=0.06)
    assert high[1] == pytest.approx(0.8, abs=0.06)


def test_test_images_among_the_training_images_are_refused(kumar, tmp_path):
    """By their names, and by what they show."""
    source = kumar / "Train" / "Images"
    names = sorted(path.name for path in source.glob("*.png"))[:3]
    for folder, name, original in (
        ("test", "held.png", names[0]),
        ("other", names[1], names[1]),
        ("same_name", "held.png", names[2]),
        ("same_picture", "renamed.png", names[0]),
    ):
        (tmp_path / folder / "Images").mkdir(parents=True)
        (tmp_path / folder / "Images" / name).symlink_to(source / original)
    test = [tmp_path / "test"]
    accuracy.check_held_out(test, [])
    accuracy.check_held_out(test, [tmp_path / "other"])
    with pytest.raises(ValueError, match="1 images are also in the training folders, by name: held"):
        accuracy.check_held_out(test, [tmp_path / "other", tmp_path / "same_name"])
    with pytest.raises(ValueError, match=r"1 pairs .* show the same tissue: .*held.png and .*renamed.png"):
        accuracy.check_held_out(test, [tmp_path / "same_picture"])


def test_the_table_of_types_has_an_interval_for_every_score():
    # two images: in one all three nuclei of type 1 are found, in the other one of two
    panoptic = np.array([[[3, 0, 0, 3.0]] * 2, [[1, 0, 1, 1.0]] * 2])
    counts = TypedCounts(
        names=["a", "b"],
        type_ids=[1],
        detection=np.array([[3, 0, 0], [1, 0, 1]]),
        types=np.array([[[3, 0, 0, 0, 0]], [[1, 0, 0, 0, 1]]]),
        panoptic=panoptic,
        nuclei=np.array([[[3], [3]], [[2], [1]]]),
    )
    lines = accuracy.typed_markdown({"Test": counts}, {1: "epithelial"}, 200).splitlines()
    header, row = ([cell.strip() for cell in lines[i].strip("|").split("|")] for i in (0, 2))
    assert header == ["split", "images", "Fd", "Fc", "F1 epithelial", "mPQ", "bPQ", "mPQ+", "R2"]
    assert row[:2] == ["Test", "2"]
    assert row[2] == "0.889 (0.667-1.000)"
    assert row[6] == "0.833 (0.667-1.000)"
    published = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert published == ["HoVer-Net paper, CoNSeP", "14", "0.748", "", "0.635", "", "", "", ""]
