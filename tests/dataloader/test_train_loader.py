"""From patches to samples: shapes, types, and the same sample for the same (seed, epoch, number)."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
import scipy.io

from dataloader import augs
from dataloader.train_loader import FileLoader, _at_least
from models.hovernet.targets import gen_targets


@pytest.fixture(scope="module")
def patches(tmp_path_factory, kumar):
    """Two real patches of 540 px, typed by size."""
    folder = tmp_path_factory.mktemp("patches")
    name = "TCGA-18-5592-01Z-00-DX1"
    image = cv2.imread(str(kumar / "Train" / "Images" / f"{name}.png"))[..., ::-1]
    labels = scipy.io.loadmat(kumar / "Train" / "Labels" / f"{name}.mat")["inst_map"].astype(np.int32)
    types = (1 + (np.bincount(labels.ravel()) > 600)).astype(np.int32)[labels] * (labels > 0)
    whole = np.dstack([image, labels, types]).astype(np.uint16)
    files = []
    for index, start in enumerate((0, 400)):
        files.append(folder / f"{name}_{index:03d}.npy")
        np.save(files[-1], whole[start : start + 540, start : start + 540])
    return files


def load(files, size: int = 270, out: int = 80, **options) -> FileLoader:
    return FileLoader(files, input_shape=(size, size), mask_shape=(out, out), target_gen=(gen_targets, {}), **options)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(value, b[name]) for name, value in a.items())


def test_what_a_sample_is(patches, subtests):
    for with_type, mode in itertools.product([False, True], ["train", "valid"]):
        with subtests.test(with_type=with_type, mode=mode):
            sample = load(patches, mode=mode, with_type=with_type)[0]
            assert sample["img"].shape == (270, 270, 3)
            assert sample["img"].dtype == np.uint8
            assert sample["np_map"].shape == (80, 80)
            assert sample["hv_map"].shape == (80, 80, 2)
            assert ("tp_map" in sample) == with_type
            if with_type:
                np.testing.assert_array_equal(sample["tp_map"] > 0, sample["np_map"] > 0)


def test_validation_is_the_centre(patches):
    patch = np.load(patches[1])
    sample = load(patches, mode="valid", with_type=True)[1]
    np.testing.assert_array_equal(sample["img"], patch[135:405, 135:405, :3])
    np.testing.assert_array_equal(sample["tp_map"], patch[230:310, 230:310, 4])
    assert same(sample, load(patches, mode="valid", with_type=True, seed=5)[1])


def test_a_sample_depends_on_seed_epoch_and_number_alone(patches):
    loader, other = load(patches, seed=3), load(patches, seed=3)
    first = loader[0]
    other[1], other[1]  # whatever was loaded before
    assert same(first, other[0])
    loader.set_epoch(1)
    assert not same(first, loader[0])
    loader.set_epoch(0)
    assert same(first, loader[0])
    assert not same(first, load(patches, seed=4)[0])
    assert not same(first, load([patches[0]] * 2, seed=3)[1])


def test_repetitions_within_an_epoch_are_augmented_anew(patches):
    loader = load(patches, seed=3)
    first = loader[0]
    loader.set_epoch(0, occurrence=1)
    assert not same(first, loader[0])
    loader.set_epoch(0, occurrence=0)
    assert same(first, loader[0])
    # what (seed, epoch, number) drew before there were occurrences
    shape_seed, input_seed = np.random.SeedSequence((3, 0, 0)).generate_state(2).tolist()
    loader.shape_augs.seed_(shape_seed)
    loader.input_augs.seed_(input_seed)
    patch = loader.shape_augs.augment_image(np.load(patches[0]))
    np.testing.assert_array_equal(first["img"], loader.input_augs.augment_image(patch[..., :3].astype(np.uint8)))


def test_image_and_labels_stay_together(patches):
    """Nuclei are dark: so they are after turning, too."""
    loader = load(patches)
    for epoch in range(6):
        loader.set_epoch(epoch)
        sample = loader[0]
        grey = sample["img"][95:175, 95:175].mean(2)
        inside = sample["np_map"] > 0
        assert grey[inside].mean() < grey[~inside].mean() - 10


def test_any_integer_type_that_holds_the_ids_loads(patches, tmp_path, subtests):
    for dtype in [np.uint16, np.int32, np.int64]:
        with subtests.test(dtype=dtype):
            np.save(tmp_path / "a.npy", np.load(patches[0]).astype(dtype))
            assert same(load([tmp_path / "a.npy"])[0], load(patches)[0])


def test_ids_beyond_16_bits_stay_apart(tmp_path):
    patch = np.full((270, 270, 4), 200, np.int32)
    patch[..., 3] = 0
    patch[100:130, 100:130, 3] = 70_000
    patch[100:130, 130:160, 3] = 70_001
    np.save(tmp_path / "a.npy", patch)
    hv_map = load([tmp_path / "a.npy"], mode="valid")[0]["hv_map"]
    assert hv_map[20, 34, 0] == 1  # the right end of the first
    assert hv_map[20, 35, 0] == -1  # the left end of the second


def test_p43_patches_smaller_than_the_input_are_reflected(tmp_path, subtests):
    for shape in [(256, 256), (100, 400), (40, 30)]:
        with subtests.test(shape=shape):
            patch = np.random.default_rng(0).integers(0, 255, (*shape, 4)).astype(np.uint16)
            patch[..., 3] = np.arange(shape[1]) // 20  # stripes
            np.save(tmp_path / "a.npy", patch)
            for mode in ("train", "valid"):
                assert load([tmp_path / "a.npy"], mode=mode)[0]["img"].shape == (270, 270, 3)


def test_p43_patches_not_much_larger_have_no_black_corners(tmp_path, subtests):
    """At the ends of all ranges; black is what lies beyond the patch."""
    sizes = [((256, 256), 256), ((256, 256), 270), ((300, 540), 256)]
    for (shape, size), turned in itertools.product(sizes, [45, 0, 135]):
        with subtests.test(shape=shape, size=size, turned=turned), pytest.MonkeyPatch.context() as monkeypatch:
            for name, value in (("SCALE", 0.8), ("TRANSLATE_SHARE", 0.01), ("SHEAR_DEG", 5), ("ROTATE_DEG", turned)):
                assert max(map(abs, getattr(augs, name))) >= value
                monkeypatch.setattr(augs, name, (value, value))
            np.save(tmp_path / "a.npy", np.full((*shape, 4), 200, np.uint16))
            loader = load([tmp_path / "a.npy"], size=size)
            loader.input_augs = None
            assert (loader[0]["img"] == 200).all()
            assert loader.least_shape < (510, 510)  # patches of 540 px stay as they are


def test_patches_of_540_px_stay_as_they_are(patches):
    patch = np.load(patches[0])
    for size in (256, 270):
        assert _at_least(patch, load(patches, size=size).least_shape) is patch


def test_p43_copies_that_do_not_touch_have_distances_of_their_own(tmp_path):
    """A nucleus 4 px from the left edge, mirrored: two with one id, each from -1 to 1."""
    patch = np.full((256, 256, 4), 200, np.uint16)
    patch[..., 3] = 0
    patch[115:145, 4:34, 3] = 7
    padded = _at_least(patch, load([], size=256).least_shape)
    instances = padded[..., 3].astype(np.int32)
    assert (instances == 7).sum() == 2 * 900
    hv_map = gen_targets(instances, instances.shape)["hv_map"]
    row = hv_map[(padded.shape[0] - 256) // 2 + 130, :, 0]
    left = (padded.shape[1] - 256) // 2
    for start in (left - 34, left + 4):
        assert (row[start], row[start + 29]) == (-1, 1)
        assert (np.diff(row[start : start + 30]) > 0).all()


def test_p12_a_patch_without_nuclei_and_one_with_1500(tmp_path):
    empty = np.zeros((540, 540, 4), np.uint16)
    crowded = empty.copy()
    for index in range(1500):
        y, x = index // 40 * 13, index % 40 * 13
        crowded[y : y + 11, x : x + 11, 3] = index + 1
    for name, patch in (("empty", empty), ("crowded", crowded)):
        np.save(tmp_path / f"{name}.npy", patch)
        sample = load([tmp_path / f"{name}.npy"])[0]
        assert sample["np_map"].any() == (name == "crowded")


def test_a_patch_of_the_wrong_shape_is_named(tmp_path, subtests):
    for shape, with_type in [((50, 50, 3), False), ((50, 50, 3), True), ((50, 50), False)]:
        with subtests.test(shape=shape, with_type=with_type):
            np.save(tmp_path / "bad.npy", np.zeros(shape, np.uint16))
            with pytest.raises(ValueError, match=r"bad\.npy has shape \(50, 50"):
                load([tmp_path / "bad.npy"], with_type=with_type)[0]


def test_p32_pickled_patches_are_refused(tmp_path):
    np.save(tmp_path / "bad.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"bad\.npy is no readable"):
        load([tmp_path / "bad.npy"])[0]


def test_an_unknown_mode_is_refused(patches):
    with pytest.raises(ValueError, match="`train` or `valid`, got `test`"):
        load(patches, mode="test")
