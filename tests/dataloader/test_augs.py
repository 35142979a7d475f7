"""Augmentation: each function changes the image as it says, within its range."""

from __future__ import annotations

import functools
import pickle

import cv2
import numpy as np
import pytest
import skimage.data
from skimage.color import rgb2hed

from dataloader import augs
from misc.ihc.stain import DENSITY_OF_VALUE

FUNCTIONS = {
    "gaussian_blur": augs.gaussian_blur,
    "median_blur": augs.median_blur,
    "hue": augs.add_to_hue,
    "saturation": augs.add_to_saturation,
    "brightness": augs.add_to_brightness,
    "contrast": augs.add_to_contrast,
    "stains": augs.jitter_stains,
    "focus": functools.partial(augs.draw_out_of_focus, share=1),
}


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.immunohistochemistry()[100:228, 200:328])


def run(function, img: np.ndarray, seed: int = 0) -> np.ndarray:
    (changed,) = function([img], np.random.default_rng(seed), None, None)
    return changed


def test_p13_every_augmentation_changes_the_image(tissue, subtests):
    for name in FUNCTIONS:
        with subtests.test(name=name):
            results = [run(FUNCTIONS[name], tissue, seed) for seed in range(16)]
            assert all(r.shape == tissue.shape and r.dtype == np.uint8 for r in results)
            # a blur of 1 x 1 px changes nothing: upstream's range has it, one time in three
            assert sum(not np.array_equal(r, tissue) for r in results) >= (6 if "blur" in name else 12)
            assert len({r.tobytes() for r in results}) >= 3
            assert np.array_equal(run(FUNCTIONS[name], tissue, 5), results[5])


def test_p13_contrast_moves_values_away_from_the_mean(tissue):
    for value, compare in ((1.25, np.greater), (0.75, np.less)):
        changed = run(functools.partial(augs.add_to_contrast, range=(value, value)), tissue)
        assert compare(changed.std(), tissue.std())
        np.testing.assert_allclose(changed.mean((0, 1)), tissue.mean((0, 1)), atol=3)  # a little is clipped


def test_brightness_adds_and_clips():
    img = np.array([[[0, 100, 250]]], np.uint8)
    changed = run(functools.partial(augs.add_to_brightness, range=(20, 20)), img)
    assert changed.tolist() == [[[20, 120, 255]]]


def test_saturation_keeps_the_grey_value(tissue):
    changed = run(functools.partial(augs.add_to_saturation, range=(-0.2, -0.2)), tissue)
    grey = [cv2.cvtColor(img, cv2.COLOR_RGB2GRAY).astype(int) for img in (tissue, changed)]
    assert np.abs(grey[0] - grey[1]).max() <= 1
    assert np.ptp(changed.astype(int), axis=2).mean() < 0.85 * np.ptp(tissue.astype(int), axis=2).mean()


def test_hue_turns_by_its_range():
    red = np.array([[[200, 10, 10]]], np.uint8)
    hsv = cv2.cvtColor(run(functools.partial(augs.add_to_hue, range=(8, 8)), red), cv2.COLOR_RGB2HSV)
    assert abs(int(hsv[0, 0, 0]) - 8) <= 1


def test_stain_jitter_of_factor_one_is_the_image(tissue):
    same = run(functools.partial(augs.jitter_stains, factor=(1, 1), offset=(0, 0), recoloured_share=0), tissue)
    assert np.abs(same.astype(int) - tissue).max() <= 1


def test_stain_jitter_scales_the_stains(tissue):
    """scikit-image's deconvolution finds half of each stain after a factor of one half."""
    half = functools.partial(augs.jitter_stains, factor=(0.5, 0.5), offset=(0, 0), recoloured_share=0)
    changed = run(half, tissue)
    before, after = (rgb2hed(img).mean((0, 1)) for img in (tissue, changed))
    np.testing.assert_allclose(after, before / 2, atol=0.004)


def test_recolouring_keeps_dark_dark(tissue):
    recolour = functools.partial(augs.jitter_stains, recoloured_share=1)
    before = DENSITY_OF_VALUE[tissue].sum(2)
    for seed in range(5):
        after = DENSITY_OF_VALUE[run(recolour, tissue, seed)].sum(2)
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.5


def test_shape_augs_do_the_same_to_image_and_labels():
    patch = np.zeros((300, 300, 4), np.uint16)
    patch[60:200, 90:240] = 1000
    pipeline = augs.train_shape_augs((256, 200))
    changed = [pipeline.augment_image(patch) for _ in range(6)]
    assert all(c.shape == (256, 200, 4) for c in changed)
    assert all((c == c[..., :1]).all() and set(np.unique(c)) == {0, 1000} for c in changed)  # nothing is mixed
    assert len({c.tobytes() for c in changed}) == 6


def test_valid_shape_augs_cut_out_the_centre():
    patch = np.arange(100 * 90 * 4, dtype=np.uint16).reshape(100, 90, 4)
    np.testing.assert_array_equal(augs.valid_shape_augs((60, 50)).augment_image(patch), patch[20:80, 20:70])


def test_our_augmentations_are_off_in_upstreams_recipe():
    def functions(pipeline):
        return [getattr(child, "function", None) for child in pipeline.get_all_children(flat=True)]

    ours = {augs.jitter_stains, augs.draw_out_of_focus}
    assert not ours & set(functions(augs.train_input_augs()))
    assert ours <= set(functions(augs.train_input_augs(stain_jitter=True, defocus={"share": 0.5})))


def test_options_of_the_stain_jitter_reach_it(tissue):
    still = {"factor": (1, 1), "offset": (0, 0), "recoloured_share": 0}
    jitter = augs.train_input_augs(still)[0]
    assert np.abs(jitter.augment_image(tissue).astype(int) - tissue).max() <= 1
    assert augs.train_input_augs({})[0].options == {}  # no options are not off
    with pytest.raises(TypeError, match="recolored_share"):
        augs.train_input_augs({"recolored_share": 0})[0].augment_image(tissue)


def test_images_out_of_focus_are_blurred_as_a_gaussian_blurs(tissue):
    blurred = run(functools.partial(augs.draw_out_of_focus, share=1, sigma_px=(2, 2)), tissue)
    np.testing.assert_array_equal(blurred, cv2.GaussianBlur(tissue, (0, 0), 2, borderType=cv2.BORDER_REPLICATE))
    assert run(functools.partial(augs.draw_out_of_focus, share=0), tissue) is tissue
    drawn = [run(augs.draw_out_of_focus, tissue, seed) for seed in range(200)]
    contrasts = np.array([image.std() for image in drawn if image is not tissue])
    assert 50 < len(contrasts) < 110
    weakest, strongest = (cv2.GaussianBlur(tissue, (0, 0), sigma).std() for sigma in augs.DEFOCUS_SIGMA_PX)
    assert strongest - 1 < contrasts.min() < contrasts.max() < weakest + 1
    assert np.ptp(contrasts) > 0.8 * (weakest - strongest)


def test_p41_pipelines_can_be_sent_to_a_process(tissue):
    pipeline = augs.train_input_augs(stain_jitter=True, defocus=True)
    copy = pickle.loads(pickle.dumps(pipeline))
    pipeline.seed_(4)
    copy.seed_(4)
    np.testing.assert_array_equal(pipeline.augment_image(tissue), copy.augment_image(tissue))


def test_numpy_is_left_as_it_was():
    assert not hasattr(np, "sctypes")
