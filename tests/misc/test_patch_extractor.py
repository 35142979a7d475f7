"""Windows: the original's order, reflected edges, and images of any size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from misc.patch_extractor import PatchExtractor


def numbered(height: int, width: int) -> np.ndarray:
    """(H, W, 2): every pixel says where it is."""
    return np.stack(np.mgrid[:height, :width], axis=-1).astype(np.int32)


def top_left(patches) -> list[tuple[int, int]]:
    return [tuple(p[0, 0].tolist()) for p in patches]


def test_valid_windows_in_the_originals_order():
    """10 x 11 px, windows of 4 x 5 in steps of 3 x 4: rows fit evenly, columns leave a rest of 2."""
    patches = PatchExtractor((4, 5), (3, 4)).extract(numbered(10, 11), "valid")
    assert top_left(patches) == [(0, 0), (0, 4), (3, 0), (3, 4), (6, 0), (6, 4), (0, 6), (3, 6), (6, 6)]
    assert all(p.shape == (4, 5, 2) for p in patches)
    assert np.array_equal(patches[-1], numbered(10, 11)[6:, 6:])


def test_a_rest_on_both_axes_ends_with_bottom_right_and_corner():
    patches = PatchExtractor((4, 4), (3, 3)).extract(numbered(8, 9), "valid")
    grid = [(0, 0), (0, 3), (3, 0), (3, 3)]
    assert top_left(patches) == [*grid, (4, 0), (4, 3), (0, 5), (3, 5), (4, 5)]


def test_mirror_reflects_without_repeating_the_edge():
    """Window 5, step 2: 3 px of margin, 1 before and 2 behind; 6 px become 1 | 0..5 | 4, 3."""
    row = np.array([1, 0, 1, 2, 3, 4, 5, 4, 3])
    patches = PatchExtractor((5, 5), (2, 2)).extract(numbered(6, 6), "MIRROR")
    starts = [0, 2, 4]
    assert len(patches) == 9
    for patch, (y, x) in zip(patches, [(y, x) for y in starts for x in starts], strict=True):
        assert np.array_equal(patch[:, 0, 0], row[y : y + 5])
        assert np.array_equal(patch[0, :, 1], row[x : x + 5])


def test_1000_px_as_the_paper_cuts_it():
    image = np.zeros((1000, 1000, 4), np.uint8)
    assert len(PatchExtractor((540, 540), (164, 164)).extract(image, "mirror")) == 49
    assert len(PatchExtractor((540, 540), (80, 80)).extract(image, "mirror")) == 169
    assert len(PatchExtractor((540, 540), (164, 164)).extract(image, "valid")) == 16


def test_centres_of_mirrored_windows_cover_every_pixel(subtests):
    for step, shape in itertools.product([(4, 6), (9, 9), (12, 5)], [(20, 23), (21, 40), (5, 47), (1, 1), (2, 9)]):
        with subtests.test(step=step, shape=shape):
            window = (13, 12)
            h, w = step = tuple(min(s, w) for s, w in zip(step, window, strict=True))
            extractor = PatchExtractor(window, step)
            top, left = ((b - s) // 2 for b, s in zip(window, step, strict=True))
            seen = np.zeros(shape, bool)
            for patch in extractor.iterate(numbered(*shape), "mirror"):
                assert patch.shape == (*window, 2)
                centre = patch[top : top + h, left : left + w]
                seen[centre[..., 0], centre[..., 1]] = True
            assert seen.all()


def test_valid_windows_cover_every_pixel(subtests):
    for shape in [(20, 23), (13, 12), (14, 30)]:
        with subtests.test(shape=shape):
            seen = np.zeros(shape, int)
            for patch in PatchExtractor((13, 12), (5, 7)).iterate(numbered(*shape), "valid"):
                seen[patch[..., 0], patch[..., 1]] += 1
            assert seen.min() == 1


def test_images_smaller_than_a_window_are_reflected(subtests):
    for shape, kind in itertools.product([(1, 1), (3, 300), (7, 2)], ["mirror", "valid"]):
        with subtests.test(shape=shape, kind=kind):
            patches = PatchExtractor((64, 64), (20, 20)).extract(numbered(*shape), kind)
            assert patches
            for patch in patches:
                assert patch.shape == (64, 64, 2)
                jumps = np.abs(np.diff(patch[:, 0, 0]))
                assert (jumps == (shape[0] > 1)).all()  # reflection goes on by one pixel, forth and back


def test_a_small_valid_image_starts_at_its_own_corner():
    (patch,) = PatchExtractor((8, 8), (4, 4)).extract(numbered(5, 8), "valid")
    assert np.array_equal(patch[:5], numbered(5, 8))
    assert patch[5:, 0, 0].tolist() == [3, 2, 1]


def test_p43_whole_is_the_image_as_it_is():
    image = numbered(256, 250)
    (patch,) = PatchExtractor((540, 540), (80, 80)).extract(image, "whole")
    assert np.array_equal(patch, image)


def test_windows_are_views_made_one_by_one():
    image = numbered(2000, 2000)
    patch = next(PatchExtractor((540, 540), (164, 164)).iterate(image, "valid"))
    assert np.shares_memory(patch, image)


def test_debug_draws_the_windows():
    extractor = PatchExtractor((10, 10), (4, 4), debug=True)
    image = np.full((20, 20, 5), 90, np.int32)
    extractor.extract(image, "mirror")
    assert extractor.drawn.shape == (26, 26, 3)
    assert (extractor.drawn[0, 0] == (255, 0, 0)).all()
    assert (image == 90).all()
    extractor.extract(image[..., 0], "valid")
    assert extractor.drawn.shape == (20, 20, 3)


def test_wrong_values_are_one_line():
    extractor = PatchExtractor((8, 8), (4, 4))
    with pytest.raises(ValueError, match="unknown patch type `middle`; there is mirror, valid, whole"):
        extractor.extract(numbered(9, 9), "middle")
    with pytest.raises(ValueError, match="at least one pixel"):
        extractor.extract(np.zeros((0, 4, 3)), "mirror")
    with pytest.raises(ValueError, match="step_size is"):
        PatchExtractor((8, 8), (0, 4))
