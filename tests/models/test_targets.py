"""Training targets: upstream's numbers, stored and written down here as a plain loop over the nuclei.

`golden/targets.npz` was made by the original's `gen_instance_hv_map` (vqdang/hover_net, commit 67e2ce5, NumPy 2.4,
SciPy 1.17, scikit-image 0.26) on two windows of a label of Kumar, reflected by 60 px: 270 px at (300, 500) with a crop
of 80 px, and 256 px at the corner with one of 164 px. The label stays with its data set, so of each map there are the
sums of its rows, the number of pixels that are not 0, and 2,000 of them (all, where there are fewer) with their places.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from conftest import count_calls
from scipy import ndimage

from misc.utils import cropping_center
from models.hovernet.targets import MIN_CROP_PX, fix_mirror_padding, gen_instance_hv_map, gen_targets, prep_sample

GOLDEN = Path(__file__).parent / "golden" / "targets.npz"


def reflected_label(kumar: Path) -> np.ndarray:
    """A label with a border of reflected nuclei, which have the ids of those they are copies of."""
    content = scipy.io.loadmat(kumar / "Train" / "Labels" / "TCGA-HE-7130-01Z-00-DX1.mat")
    return np.pad(content["inst_map"].astype(np.int32), 60, mode="reflect")


def one_by_one(ann: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """The distances of every piece of every nucleus, from their definition."""
    hv_map = np.zeros((*ann.shape, 2), np.float32)
    for nucleus in np.unique(ann[ann > 0]):
        pieces, count = ndimage.label(ann == nucleus)
        for piece in range(1, count + 1):
            mask = pieces == piece
            ys, xs = np.nonzero(mask)
            if cropping_center(mask, crop).sum() < MIN_CROP_PX or min(ys.min(), xs.min()) < 2:
                continue
            for channel, at in ((0, xs), (1, ys)):
                first = at.min() - 2
                distance = (at - first + 1 - int(np.mean(at - first) + 0.5)).astype(np.float32)
                below, above = distance < 0, distance > 0
                if below.any():
                    distance[below] /= -distance[below].min()
                if above.any():
                    distance[above] /= distance[above].max()
                hv_map[ys, xs, channel] = distance
    return hv_map


def test_hv_maps_of_real_nuclei(kumar, subtests):
    for size, crop in [(270, 80), (256, 164), (256, 256)]:
        with subtests.test(size=size, crop=crop):
            padded = reflected_label(kumar)
            for top, left in ((0, 0), (300, 500), (1120 - size, 7)):
                ann = padded[top : top + size, left : left + size]
                found = gen_instance_hv_map(ann, (crop, crop))
                assert found.dtype == np.float32
                assert np.abs(found).max() == 1
                np.testing.assert_allclose(found, one_by_one(ann, (crop, crop)), atol=1e-6)


@pytest.mark.parametrize(("size", "crop", "top", "left"), [(270, 80, 300, 500), (256, 164, 0, 0)])
def test_hv_maps_are_the_originals(kumar, size, crop, top, left):
    ann = reflected_label(kumar)[top : top + size, left : left + size]
    found = gen_instance_hv_map(ann, (crop, crop))
    with np.load(GOLDEN) as golden:
        ys, xs = golden[f"places_{size}"].T
        np.testing.assert_allclose(found[ys, xs], golden[f"values_{size}"], atol=1e-6, rtol=0)
        assert found.any(axis=-1).sum() == golden[f"count_{size}"]
        np.testing.assert_allclose(found.sum(1, dtype=np.float64), golden[f"row_sums_{size}"], atol=1e-4)


def test_distances_of_a_small_nucleus():
    ann = np.zeros((20, 20), np.int32)
    ann[5:12, 4:14] = 3
    x, y = gen_instance_hv_map(ann, (20, 20))[8, 4:14].T
    # 10 px wide: the centre of mass is at 4.5, rounded to 5, and pixels are counted from 1
    np.testing.assert_allclose(x, [-1, -0.75, -0.5, -0.25, 0, 0.2, 0.4, 0.6, 0.8, 1], atol=1e-6)
    np.testing.assert_allclose(y, 0.25)  # the row of the centre is counted as the one below it, as upstream does


def test_30_px_in_the_crop_are_a_nucleus_and_29_are_not():
    for count, expected in ((MIN_CROP_PX, True), (MIN_CROP_PX - 1, False)):
        ann = np.zeros((40, 40), np.int32)
        ann[10:12, 10:20] = 1
        ann[12, 10 : 10 + count - 20] = 1
        assert gen_instance_hv_map(ann, (40, 40)).any() == expected
        assert gen_targets(ann, (40, 40))["np_map"].sum() == count  # NP keeps it


def test_targets_are_the_centre():
    ann = np.zeros((60, 64), np.int32)
    ann[20:40, 20:40] = 7
    targets = gen_targets(ann, (20, 24))
    assert targets["np_map"].shape == (20, 24)
    assert targets["np_map"].dtype == np.int32
    assert targets["hv_map"].shape == (20, 24, 2)
    assert set(np.unique(targets["np_map"])) == {0, 1}


def test_p12_a_patch_without_a_nucleus():
    targets = gen_targets(np.zeros((270, 270), np.int32), (80, 80))
    assert not targets["np_map"].any()
    assert not targets["hv_map"].any()


def test_mirrored_copies_get_ids_of_their_own():
    ann = np.array([[5, 5, 0, 5, 0], [0, 0, 0, 0, 2], [5, 0, 2, 0, 0]])
    # nucleus 2 has pieces (1, 4) and (2, 2); nucleus 5 has (0, 0), (0, 3) and (2, 0); the largest id is 5
    np.testing.assert_array_equal(fix_mirror_padding(ann), [[5, 5, 0, 9, 0], [0, 0, 0, 0, 2], [10, 0, 7, 0, 0]])
    assert ann.max() == 5  # the argument is left alone


def grid_of_nuclei(count: int) -> np.ndarray:
    ann = np.zeros((1000, 1000), np.int32)
    for index in range(count):
        y, x = 2 + index // 50 * 33, 2 + index % 50 * 19
        ann[y : y + 14, x : x + 14] = index + 1
    return ann


def test_p18_no_nucleus_is_compared_with_the_whole_map():
    """For 1,500 nuclei that would be 1,500 x 1,000,000 px."""
    few, many = grid_of_nuclei(10), grid_of_nuclei(1500)
    assert (gen_instance_hv_map(many, many.shape) != 0).any(axis=2).sum() > 1500 * 150
    assert count_calls(gen_instance_hv_map, many, many.shape) == count_calls(gen_instance_hv_map, few, few.shape)


@pytest.mark.parametrize("with_types", [False, True])
def test_pictures_of_samples(with_types):
    ann = np.zeros((50, 60), np.int32)
    ann[10:30, 20:40] = 1
    sample = {"img": np.full((50, 60, 3), 200, np.uint8), **gen_targets(ann, (30, 40))}
    if with_types:
        sample["tp_map"] = sample["np_map"] * 2
    picture = prep_sample(sample, type_info={0: ("none", (0, 0, 0)), 2: ("blue", (1, 2, 250))})
    if with_types:
        assert picture[20, 240 + 30].tolist() == [1, 2, 250]  # in the type's own colour
    assert picture.shape == (50, (5 if with_types else 4) * 60, 3)
    assert picture[20, 60 + 30, 0] > 100 > picture[20, 60 + 30, 2]  # nucleus: red
    assert picture[20, 120 + 21, 2] > 100 > picture[20, 120 + 21, 0]  # left end of the x map: blue
    batch = {name: np.stack([value, value]) for name, value in sample.items()}
    assert prep_sample(batch, is_batch=True).shape == (100, picture.shape[1], 3)
