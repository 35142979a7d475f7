"""Colour deconvolution: mixtures made by hand come apart again; another implementation agrees."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import io, ndimage

from misc.ihc.stain import DAB_RGB, HEMATOXYLIN_RGB, WHITE, label_densities, optical_density, stain_densities
from misc.nuclei import Nuclei
from misc.nuclei_features import nuclear_densities


def dyed(hematoxylin, dab):
    """Colour of a pixel with these amounts of stain, by Beer and Lambert."""
    density = hematoxylin * unit(HEMATOXYLIN_RGB) + dab * unit(DAB_RGB)
    return np.rint(WHITE * 10**-density).astype(np.uint8)


def unit(vector):
    return np.array(vector) / np.linalg.norm(vector)


def test_densities_by_eye():
    assert optical_density(np.array([255, 0, 1], np.uint8)) == pytest.approx([0, 2.40654, 2.40654], abs=1e-5)
    assert optical_density(np.array([26], np.uint8)) == pytest.approx([np.log10(255 / 26)])
    with pytest.raises(ValueError, match="8-bit"):
        optical_density(np.zeros(3))


def test_a_mixture_comes_apart(subtests):
    for amounts in [(0, 0), (0.5, 0), (0, 0.7), (0.3, 0.4), (0.1, 1.0)]:
        with subtests.test(amounts=amounts):
            # a value of 0-255 is right to half a step, which in the dark is some hundredths of density
            assert stain_densities(dyed(*amounts), "hdab") == pytest.approx(amounts, abs=0.03)


def test_scikit_image_agrees_on_which_pixel_has_more_dab():
    from skimage import color, data

    rgb = data.immunohistochemistry()[::4, ::4]
    theirs = color.rgb2hed(rgb)[..., 2].ravel()  # haematoxylin, eosin, DAB at once; ours has no eosin
    ours = stain_densities(rgb, "hdab")[..., 1].ravel()
    assert np.corrcoef(theirs, ours)[0, 1] > 0.9


def test_label_map_means_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (30, 40, 3), np.uint8)
    inst_map = np.zeros((30, 40), np.int32)
    inst_map[2:9, 3:7], inst_map[20:30, 30:40], inst_map[0, 0] = 7, 500_000, 2
    ids, densities = label_densities(rgb, inst_map)
    assert ids.tolist() == [2, 7, 500_000]
    every = stain_densities(rgb, "hdab")
    slow = [every[inst_map == i].mean(axis=0) for i in ids]
    assert densities == pytest.approx(np.array(slow), abs=1e-5)


def test_an_empty_label_map_has_no_densities_and_shapes_must_fit():
    ids, densities = label_densities(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int))
    assert ids.shape == (0,)
    assert densities.shape == (0, 2)
    with pytest.raises(ValueError, match="do not belong together"):
        label_densities(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4), int))
    with pytest.raises(ValueError, match="there are he, hdab"):
        stain_densities(np.zeros((1, 3), np.uint8), "pas")


def test_contours_and_label_maps_are_measured_alike():
    rgb = np.random.default_rng(2).integers(0, 256, (40, 50, 3), np.uint8)
    square = np.array([[5, 5], [12, 5], [12, 20], [5, 20]], np.int32)
    inst_map = np.zeros((40, 50), np.int32)
    inst_map[5:21, 5:13] = 1
    nuclei = Nuclei.from_contours([1], [[[5, 5], [21, 13]]], [[8.5, 12.5]], [square])
    by_contour = nuclear_densities(nuclei, lambda y, x, h, w: rgb[y : y + h, x : x + w], (40, 50), "hdab")
    assert by_contour == pytest.approx(label_densities(rgb, inst_map)[1], abs=1e-5)


@pytest.mark.parametrize("name", ["Bladder1", "Lung1"])
def test_dab_alone_tells_positive_from_negative_nuclei(shared, name):
    import cv2

    from misc.ihc.scores import NEGATIVE, classify, nuclear_dab

    rgb = cv2.imread(str(shared / "data" / "ihc" / "Images" / f"{name}.png"), cv2.IMREAD_COLOR_RGB)
    label = io.loadmat(shared / "data" / "ihc" / "Labels" / f"{name}.mat")
    ids, dab = nuclear_dab(rgb, label["inst_map"])
    types = ndimage.median(label["type_map"], label["inst_map"], ids)
    positive, found = types == 1, classify(dab) > NEGATIVE
    assert (positive == found).mean() > 0.9
    assert (
        found[positive].mean() > 0.7
    )  # positives are few: calling all of them negative would be 0.9 right on one image
    assert found[~positive].mean() < 0.1
