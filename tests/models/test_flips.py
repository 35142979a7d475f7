"""Flips at test time: maps of mirror images are mirror images, whatever the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infer.predictor import Predictor
from models.hovernet.net_desc import create_model

CPU = [torch.device("cpu")]
SIDE = 128  # px, 36 of which come out
TYPE, PROBABILITY, H, V = range(4)
MIRRORS = {"left and right": ((2,), (-1, 1)), "up and down": ((1,), (1, -1)), "both": ((1, 2), (-1, -1))}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return create_model("fast", nr_types=3, width=0.125)


def alike(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-6) -> bool:
    """Tell whether maps are equal within a share of each map's largest value: random weights give HV of hundreds."""
    largest = np.abs(b[:, 1:]).max(axis=(0, 2, 3), keepdims=True)
    return bool((np.abs(a - b)[:, 1:] <= tolerance * largest).all())


def mirrored(maps: np.ndarray, axes: tuple[int, ...], signs: tuple[int, int]) -> np.ndarray:
    """Mirror maps, (N, C, h, w), along axes of the images, (N, H, W, 3), that they are of."""
    maps = np.flip(maps, [axis + 1 for axis in axes]).copy()
    maps[:, H], maps[:, V] = signs[0] * maps[:, H], signs[1] * maps[:, V]
    return maps


def test_maps_of_a_mirrored_image_are_the_mirrored_maps(net, subtests):
    images = np.random.default_rng(0).integers(0, 255, (2, SIDE, SIDE, 3), dtype=np.uint8)
    flips = Predictor(net, CPU, 4, "fp32", type_probs=True, tta=True)
    maps, plain = flips(images), Predictor(net, CPU, 4, "fp32", type_probs=True)
    assert maps.shape == (2, 4 + 3, 36, 36)
    assert np.allclose(maps[:, 4:].sum(axis=1), 1, atol=1e-5)  # probabilities of the types
    assert np.allclose(maps[:, 4:].argmax(axis=1), maps[:, TYPE])
    views = [plain(images)]
    for name, (axes, signs) in MIRRORS.items():
        with subtests.test(name):
            other = np.ascontiguousarray(np.flip(images, axes))
            assert alike(mirrored(flips(other), axes, signs), maps)
            views.append(mirrored(plain(other), axes, signs))
            assert not alike(views[-1], views[0], 1e-3)  # without flips they are not
    assert alike(np.mean(views, axis=0), maps)  # the average of the maps


def test_a_symmetric_image_has_symmetric_maps(net):
    image = np.random.default_rng(1).integers(0, 255, (1, SIDE, SIDE, 3), dtype=np.uint8)
    image = np.maximum(image, image[:, :, ::-1])
    maps = Predictor(net, CPU, 1, "fp32", tta=True)(image)
    assert alike(maps, mirrored(maps, *MIRRORS["left and right"]))
    assert np.abs(maps[:, H]).max() > 1e-3
