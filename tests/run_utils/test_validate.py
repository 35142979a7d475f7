"""Whole validation images: the same steps as inference."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from torch import nn
from tqdm import TMonitor

from models.hovernet.net_desc import create_model
from run_utils.validate import ImageValidator, check_pairs, find_pairs

LOST = 92  # px that `fast` takes off its input


class Colours(nn.Module):
    """Predicts what the colours of the image say: red is nucleus or not, green and blue the HV maps."""

    mode, nr_types, output_ch = "fast", None, 3

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


def test_every_pixel_is_predicted_in_its_place(tmp_path):
    """On sizes around the boundaries of patches, whatever the batch size."""
    shapes = [(164, 164), (165, 330), (163, 329), (40, 170), (500, 36)]
    for shape in shapes:
        write_folder(tmp_path, "x".join(map(str, shape)), *image_of_squares(*shape))
    pairs = find_pairs([tmp_path])
    for batch_size in (1, 3, 100):
        for pair in pairs:
            scores = ImageValidator([pair], batch_size=batch_size).score(Colours())
            assert scores["img_pq"] == pytest.approx(1, abs=1e-5), pair
        assert ImageValidator(pairs, batch_size=batch_size).score(Colours())["img_aji"] == pytest.approx(1, abs=1e-5)


def test_the_network_that_is_trained_stays_as_it_is(tmp_path):
    write_folder(tmp_path, "a", *image_of_squares(100, 100))
    net = create_model("fast", width=0.125).train()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    strides = [parameter.stride() for parameter in net.parameters()]
    ImageValidator(find_pairs([tmp_path])).score(net)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [parameter.stride() for parameter in net.parameters()] == strides
    assert all((parameter.grad == 1).all() for parameter in net.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_an_image_that_can_no_longer_be_read_is_named_and_no_thread_is_left(tmp_path):
    for name in ("a", "b", "c"):
        write_folder(tmp_path, name, *image_of_squares(300, 300))
    pairs = find_pairs([tmp_path])
    pairs[1].image.write_bytes(b"no image")
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match=r"b\.png.*not an image") as caught:
        ImageValidator(pairs, batch_size=1).score(Colours())
    left = set(threading.enumerate()) - before
    assert caught.traceback  # which keeps what hangs on its frames
    assert not [thread for thread in left if not isinstance(thread, TMonitor)]


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


class TypedColours(Colours):
    """Has two types, and takes every nucleus for one of type 1."""

    nr_types, output_ch = 3, 4

    def forward(self, imgs):
        out, centre = super().forward(imgs), imgs[:, :, LOST // 2 : -LOST // 2, LOST // 2 : -LOST // 2]
        nucleus = centre[:, 0] > 128
        out["tp"] = nn.functional.one_hot(nucleus * 1, 3).permute(0, 3, 1, 2).float()
        return out


def test_types_of_whole_images_are_scored_by_what_the_truth_names(tmp_path):
    image, label = image_of_squares(100, 180)
    types = np.arange(1, label.max() + 1) % 2 + 1
    write_folder(tmp_path, "a", image, label)
    content = {"inst_map": label, "inst_type": types[:, None], "inst_uid": np.arange(1, label.max() + 1)[:, None]}
    scipy.io.savemat(tmp_path / "Labels" / "a.mat", content)
    pairs = find_pairs([tmp_path])
    assert check_pairs(pairs, 3) is None
    scores = ImageValidator(pairs, with_types=True).score(TypedColours())
    ones, twos = np.count_nonzero(types == 1), np.count_nonzero(types == 2)
    assert scores["img_f1_1"] == pytest.approx(2 * ones / (2 * ones + 2 * twos))
    assert scores["img_f1_2"] == 0
    types[types == 2] = 0  # never a nucleus' type: nobody looked at these
    scipy.io.savemat(tmp_path / "Labels" / "a.mat", content | {"inst_type": types[:, None]})
    assert ImageValidator(pairs, with_types=True).score(TypedColours())["img_f1_1"] == 1
    assert "img_f1_2" not in ImageValidator(pairs, with_types=True).score(TypedColours())
    types[0] = 7
    scipy.io.savemat(tmp_path / "Labels" / "a.mat", content | {"inst_type": types[:, None]})
    assert "has type 7, the network only 1 to 2" in check_pairs(pairs, 3)
    assert "the network has none" in check_pairs(pairs, None)
