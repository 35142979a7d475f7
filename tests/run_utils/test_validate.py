"""Whole validation images: the same steps as inference."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from torch import nn

from run_utils.validate import ImageValidator, check_pairs, find_pairs, predict_image

LOST = 92  # px that `fast` takes off its input


class Colours(nn.Module):
    """Predicts what the colours of the image say: red is nucleus or not, green and blue the HV maps."""

    mode, nr_types = "fast", None

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, imgs):
        centre = imgs[:, :, LOST // 2 : -LOST // 2, LOST // 2 : -LOST // 2]
        nucleus = (centre[:, :1] > 128).float() * 20 - 10
        return {"np": torch.cat([-nucleus, nucleus], 1), "hv": (centre[:, 1:] - 128) / 120}


def image_of_squares(height: int, width: int, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Square nuclei on a grid, painted as `Colours` reads them, and their label."""
    image, label = np.full((height, width, 3), (0, 128, 128), np.uint8), np.zeros((height, width), np.int32)
    ramp = np.linspace(8, 248, side).astype(np.uint8)
    for y in range(4, height - side, 2 * side):
        for x in range(4, width - side, 2 * side):
            box = image[y : y + side, x : x + side]
            box[..., 0], box[..., 1], box[..., 2] = 255, ramp, ramp[:, None]
            label[y : y + side, x : x + side] = label.max() + 1
    return image, label


def test_every_pixel_is_predicted_in_its_place(subtests):
    for shape in [(1, 1), (40, 170), (164, 164), (165, 330)]:
        with subtests.test(shape=shape):
            rng = np.random.default_rng(0)
            image = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
            pred_map = predict_image(Colours(), image, batch_size=2)
            assert pred_map.shape == (*shape, 3)
            np.testing.assert_allclose(pred_map[..., 0] > 0.5, image[..., 0] > 128)
            np.testing.assert_allclose(pred_map[..., 1:], (image[..., 1:].astype(float) - 128) / 120, atol=1e-6)


def write_folder(folder, name: str, image: np.ndarray, label: np.ndarray) -> None:
    for sub in ("Images", "Labels"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "Images" / f"{name}.png"), image[..., ::-1])
    scipy.io.savemat(folder / "Labels" / f"{name}.mat", {"inst_map": label})


def test_a_perfect_prediction_scores_one_and_an_empty_image_nothing(tmp_path):
    write_folder(tmp_path, "a.1", *image_of_squares(200, 180))
    empty = np.full((120, 100, 3), (0, 128, 128), np.uint8)
    write_folder(tmp_path, "empty", empty, np.zeros((120, 100), np.int32))
    pairs = find_pairs([tmp_path])
    assert [pair.label.name for pair in pairs] == ["a.1.mat", "empty.mat"]
    scores = ImageValidator(pairs).score(Colours())
    assert scores["img_dice"] == pytest.approx(1, abs=1e-6)
    assert scores["img_pq"] == pytest.approx(1, abs=1e-5)
    assert scores["img_aji"] == pytest.approx(1, abs=1e-5)


def test_the_network_may_see_a_smaller_image(tmp_path):
    image, label = image_of_squares(100, 100)
    write_folder(tmp_path, "a", cv2.resize(image, (200, 200)), np.kron(label, np.ones((2, 2), np.int32)))
    scores = ImageValidator(find_pairs([tmp_path]), scale=0.5).score(Colours())
    assert scores["img_dice"] > 0.9
    with pytest.raises(ValueError, match="valid_image_scale"):
        ImageValidator([], scale=2)


def test_missing_labels_and_images_are_named(tmp_path):
    write_folder(tmp_path, "a", *image_of_squares(50, 50))
    (tmp_path / "Labels" / "a.mat").rename(tmp_path / "Labels" / "b.mat")
    with pytest.raises(FileNotFoundError, match=r"1 validation images have no label.*a.mat"):
        find_pairs([tmp_path])
    (tmp_path / "Images" / "a.png").unlink()
    with pytest.raises(ValueError, match="no images in"):
        find_pairs([tmp_path])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_pairs([tmp_path / "nowhere"])


def test_what_cannot_be_scored_is_named_before_the_first_step(tmp_path_factory, subtests):
    cases = [
        ("Images/a.png", b"", r"a.png is empty"),
        ("Images/a.png", b"no image", r"a.png is not an image"),
        ("Labels/a.mat", b"no label", r"a.mat is no readable .mat"),
        ("Labels/a.mat", {"map": np.zeros((60, 60))}, r"a.mat has no inst_map"),
        ("Labels/a.mat", {"inst_map": np.zeros((50, 60))}, r"a.mat is \(50, 60\), its image .*a.png \(60, 60\)"),
    ]
    for name, content, message in cases:
        with subtests.test(name=name, content=content, message=message):
            tmp_path = tmp_path_factory.mktemp("case")
            write_folder(tmp_path, "a", *image_of_squares(60, 60))
            write_folder(tmp_path, "b", *image_of_squares(60, 60))
            pairs = find_pairs([tmp_path])
            check_pairs(pairs)
            if isinstance(content, bytes):
                (tmp_path / name).write_bytes(content)
            else:
                scipy.io.savemat(tmp_path / name, content)
            with pytest.raises(ValueError, match=message) as caught:
                check_pairs(pairs)
            assert "\n" not in str(caught.value)
