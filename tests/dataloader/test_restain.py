"""H&E becomes haematoxylin and DAB: the same for the same seed, and as brown as the classes say."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import scipy.io
from scipy.spatial import cKDTree

from dataloader import restain as restaining
from dataloader import restain_scene
from dataloader.restain import DAB_OD, restain
from dataloader.train_loader import FileLoader
from misc.ihc.scores import MODERATE, NEGATIVE, STRONG, THRESHOLDS_OD, WEAK, classify, nuclear_dab
from misc.type_info import UNKNOWN_TYPE
from models.hovernet import opt_scratch
from models.hovernet.targets import gen_targets
from run_utils.recipe_checks import check_recipe

LEAST_AREA_PX = 30  # smaller ones, cut by the window, are all edge


@pytest.fixture(scope="module")
def patch(kumar):
    """A real patch of 256 px at 0.5 um/px and its instances."""
    name = "TCGA-18-5592-01Z-00-DX1"
    image = cv2.imread(str(kumar / "Train" / "Images" / f"{name}.png"))[..., ::-1][:512, :512]
    labels = scipy.io.loadmat(kumar / "Train" / "Labels" / f"{name}.mat")["inst_map"][:512:2, :512:2]
    return cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA), labels.astype(np.int32)


def test_the_same_seed_makes_the_same_patch_and_the_input_stays(patch):
    image, labels = (array.copy() for array in patch)
    first, classes = restain(image, labels, np.random.default_rng(7))
    again, same_classes = restain(image, labels, np.random.default_rng(7))
    other, _ = restain(image, labels, np.random.default_rng(8))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(classes, same_classes)
    assert (first != other).any()
    np.testing.assert_array_equal(image, patch[0])
    np.testing.assert_array_equal(labels, patch[1])
    assert (first.shape, first.dtype) == (image.shape, np.uint8)
    assert (first != image).any()


def test_every_nucleus_has_a_class_and_nothing_else_has(patch):
    image, labels = patch
    for nr_classes in (2, 4):
        seen = set()
        for seed in range(30):
            classes = restain(image, labels, np.random.default_rng(seed), nr_classes)[1]
            there = np.bincount(labels.ravel()) > 0
            there[0] = False
            np.testing.assert_array_equal(classes > 0, there)
            seen |= set(classes[there].tolist())
        assert seen == set(range(1, nr_classes + 1))
    with pytest.raises(ValueError, match="2 or 4 classes, got 3"):
        restain(image, labels, np.random.default_rng(0), 3)


def test_measured_dab_agrees_with_the_class(patch):
    """Our own colour deconvolution finds in the picture what the classes say; under brown cytoplasm, beside it."""
    image, labels = patch
    area = np.bincount(labels.ravel())
    near = cv2.dilate(labels.astype(np.uint16), np.ones((7, 7), np.uint8)).astype(np.int32) * (labels == 0)
    truth, measured, around = [], [], []
    for seed in range(40):
        stained, classes = restain(image, labels, np.random.default_rng(seed), 4)
        ids, dab = nuclear_dab(stained, labels)
        large = area[ids] >= LEAST_AREA_PX
        truth.append(classes[ids[large]])
        measured.append(dab[large])
        ring = dict(zip(*nuclear_dab(stained, near), strict=True))
        around.append([ring.get(nucleus, 0) for nucleus in ids[large].tolist()])
    truth, measured, around = (np.concatenate(values) for values in (truth, measured, around))
    positive = truth > NEGATIVE
    assert min(np.bincount(truth)[1:]) > 50  # of each class
    assert np.mean(measured[positive] > THRESHOLDS_OD[0]) > 0.98
    is_pale = (measured < THRESHOLDS_OD[0]) | (measured < around)
    assert np.mean(is_pale[~positive]) > 0.97
    assert np.mean(measured[~positive] < THRESHOLDS_OD[0]) > 0.75  # all but markers of cytoplasm
    assert np.mean(classify(measured)[positive] == truth[positive]) > 0.9
    for value in (WEAK, MODERATE, STRONG):
        middle = np.median(measured[truth == value])
        assert middle > DAB_OD[value][0]
        assert value == STRONG or middle < DAB_OD[value][1]


def test_neither_haze_nor_cytoplasm_nor_membranes_make_a_nucleus_positive(patch, monkeypatch, subtests):
    """Without positive nuclei none is called so, and none looks so beside its surroundings, however brown they are."""
    image, labels = patch
    near = cv2.dilate(labels.astype(np.uint16), np.ones((9, 9), np.uint8)).astype(np.int32) * (labels == 0)
    large = np.flatnonzero(np.bincount(labels.ravel(), weights=labels.ravel() > 0) >= LEAST_AREA_PX)
    monkeypatch.setattr(restaining, "SHARES", ((0.0, 0.0),) * len(restaining.SHARES))
    monkeypatch.setattr(restain_scene, "INK_CHANCE", 0)
    monkeypatch.setattr(restain_scene, "HAZE_CHANCE", 1)
    monkeypatch.setattr(restain_scene, "HAZE_OD", (0.1, 0.2))
    for extent in restaining.EXTENTS:
        monkeypatch.setattr(restaining, "EXTENT_CHANCES", [float(extent == other) for other in restaining.EXTENTS])
        inside, around = [], []
        for seed in range(8):
            stained, classes = restain(image, labels, np.random.default_rng(seed))
            assert set(classes.tolist()) <= {0, NEGATIVE}
            own, ring = (dict(zip(*nuclear_dab(stained, ids), strict=True)) for ids in (labels, near))
            both = [nucleus for nucleus in large.tolist() if nucleus in ring]
            inside += [own[nucleus] for nucleus in both]
            around += [ring[nucleus] for nucleus in both]
        inside, around = np.array(inside), np.array(around)
        with subtests.test(extent=extent):
            assert np.mean(around > THRESHOLDS_OD[0]) > 0.2  # brown enough to call the nuclei positive by it
            assert np.mean((inside < THRESHOLDS_OD[0]) | (inside < around)) > 0.97
            if extent != restain_scene.MUCH:
                assert np.mean(inside < THRESHOLDS_OD[0]) > 0.95


def test_nuclei_out_of_focus_are_pale_and_blurred_and_make_no_nucleus_positive(patch, monkeypatch):
    image, labels = patch
    monkeypatch.setattr(restain_scene, "UNFOCUSED_CHANCE", 1)
    measured = restain_scene.Patch.of(image, labels, 0.5)
    for seed in range(8):
        planes = restain_scene.unfocused(measured, np.random.default_rng(seed))
        both = sum(planes)
        assert 0 < both.max() <= 1.5 * restain_scene.UNFOCUSED_OD[1]
        assert max(np.abs(np.diff(both, axis=axis)).max() for axis in (0, 1)) < both.max() / 3  # no edge
    empty = restain_scene.Patch.of(image, np.zeros_like(labels), 0.5)
    assert not sum(restain_scene.unfocused(empty, np.random.default_rng(0))).any()
    monkeypatch.setattr(restain_scene, "UNFOCUSED_BROWN", 1)
    monkeypatch.setattr(restaining, "SHARES", ((0.0, 0.0),) * len(restaining.SHARES))
    monkeypatch.setattr(restaining, "EXTENT_CHANCES", [1.0, 0.0, 0.0])
    large = np.flatnonzero(np.bincount(labels.ravel(), weights=labels.ravel() > 0) >= LEAST_AREA_PX)
    for seed in range(8):
        dab = dict(zip(*nuclear_dab(restain(image, labels, np.random.default_rng(seed))[0], labels), strict=True))
        assert np.mean([dab[nucleus] < THRESHOLDS_OD[0] for nucleus in large.tolist()]) > 0.95


def test_positive_nuclei_lie_together(patch):
    """The nearest neighbour of a positive nucleus is positive more often than chance has it."""
    image, labels = patch
    ys, xs = np.nonzero(labels)
    count = np.bincount(labels[ys, xs])
    ids = np.flatnonzero(count)
    centres = np.stack([np.bincount(labels[ys, xs], v)[ids] / count[ids] for v in (xs, ys)], axis=-1)
    nearest = cKDTree(centres).query(centres, k=2)[1][:, 1]
    excess = []
    for seed in range(60):
        positive = restain(image, labels, np.random.default_rng(seed))[1][ids] > NEGATIVE
        if positive.sum() >= 5:
            excess.append(positive[nearest][positive].mean() - (positive.sum() - 1) / (len(ids) - 1))
    assert np.mean(excess) > 0.05
    assert max(excess) > 0.2


def test_p12_patches_without_nuclei_and_full_of_one_are_restained():
    image = np.full((96, 96, 3), 230, np.uint8)
    for labels in (np.zeros((96, 96), np.int32), np.full((96, 96), 3, np.int32)):
        for seed in range(8):
            stained, classes = restain(image, labels, np.random.default_rng(seed))
            assert stained.shape == image.shape
            assert len(classes) == labels.max() + 1


def test_lengths_are_in_micrometres(patch):
    image, labels = patch
    coarse, _ = restain(image, labels, np.random.default_rng(1), mpp=0.5)
    fine, _ = restain(image, labels, np.random.default_rng(1), mpp=0.25)
    assert (coarse != fine).any()


@pytest.fixture(scope="module")
def files(patch, tmp_path_factory):
    """The patch without types, and with types 3 and 4."""
    image, labels = patch
    folder = tmp_path_factory.mktemp("patches")
    types = np.where(labels > 0, 3 + labels % 2, 0)
    np.save(folder / "untyped.npy", np.dstack([image, labels]).astype(np.uint16))
    np.save(folder / "typed.npy", np.dstack([image, labels, types]).astype(np.uint16))
    return [folder / "untyped.npy", folder / "typed.npy"]


def load(files, with_type=True, mode="valid", **options) -> FileLoader:
    shapes = {"input_shape": (256, 256), "mask_shape": (164, 164)}
    return FileLoader(files, with_type=with_type, mode=mode, target_gen=(gen_targets, {}), **shapes, **options)


def test_the_loader_restains_a_share_and_leaves_the_rest_alone(files):
    plain = load(files * 20)
    loader = load(files * 20, restain={"share": 0.5, "classes": 2, "mpp": 0.5})
    restained = 0
    for index in range(40):
        sample, original = loader[index], plain[index]
        np.testing.assert_array_equal(sample["np_map"], original["np_map"])
        np.testing.assert_array_equal(sample["hv_map"], original["hv_map"])
        types = set(np.unique(sample["tp_map"]).tolist()) - {0}
        if (sample["img"] == original["img"]).all():
            assert types == ({UNKNOWN_TYPE} if index % 2 == 0 else {3, 4})
        else:
            restained += 1
            assert types <= {1, 2}
            np.testing.assert_array_equal(sample["tp_map"] > 0, sample["np_map"] > 0)
        assert sample["img"].dtype == np.uint8
    assert 10 <= restained <= 30
    again = load(files * 20, restain={"share": 0.5, "classes": 2, "mpp": 0.5})
    assert all(np.array_equal(again[5][name], loader[5][name]) for name in sample)


def test_types_stay_where_no_classes_are_asked_for(files):
    plain, loader = load(files), load(files, restain={"share": 1.0, "classes": None, "mpp": 0.5})
    for index in range(2):
        assert (loader[index]["img"] != plain[index]["img"]).any()
        np.testing.assert_array_equal(loader[index]["tp_map"], plain[index]["tp_map"])
    assert "tp_map" not in load(files, with_type=False, restain={"share": 1.0, "classes": 2, "mpp": 0.5})[0]


def test_training_without_it_draws_what_it_drew_before(files):
    plain, off = load(files, mode="train"), load(files, mode="train", restain={"share": 0.0, "classes": 2, "mpp": 0.5})
    on = load(files, mode="train", restain={"share": 1.0, "classes": 2, "mpp": 0.5})
    assert all(np.array_equal(value, off[1][name]) for name, value in plain[1].items())
    np.testing.assert_array_equal(on[1]["np_map"], plain[1]["np_map"])  # turned as without


def test_stain_jitter_leaves_restained_samples_alone(files):
    """It turns haematoxylin brown, after which a negative nucleus would look positive."""
    restained = {"share": 1.0, "classes": 2, "mpp": 0.5}
    with_jitter, without = (load(files, mode="train", restain=restained, stain_jitter=on) for on in (True, False))
    for epoch in range(5):
        for loader in (with_jitter, without):
            loader.set_epoch(epoch)
        np.testing.assert_array_equal(with_jitter[0]["img"], without[0]["img"])


def test_restained_samples_are_drawn_out_of_focus_too(files):
    restained = {"share": 1.0, "classes": 2, "mpp": 0.5}
    blurred = {"share": 1.0, "sigma_px": (50, 50)}
    soft, sharp = (load(files, mode="train", restain=restained, defocus=on)[0]["img"] for on in (blurred, False))
    assert cv2.blur(soft, (9, 9)).std() < 0.5 * cv2.blur(sharp, (9, 9)).std()  # some noise is added later


def test_wrong_options_are_named_before_the_first_step():
    for wrong in (
        0.5,
        {"share": 1.5, "classes": 2, "mpp": 0.5},
        {"share": 0.5, "classes": 3, "mpp": 0.5},
        {"share": 0.5, "classes": 2},
        {"share": 0.5, "classes": 2, "mpp": 0},
        {"share": 0.5, "classes": 2, "mpp": 0.5, "shares": 1},
    ):
        recipe = opt_scratch.get_config(3, "fast")
        recipe["run_engine"]["train"]["restain"] = wrong
        with pytest.raises(ValueError, match="engine `train`: restain must be"):
            check_recipe(recipe, 3)
    recipe = opt_scratch.get_config(5, "fast", restain={"share": 0.5, "classes": 4, "mpp": 0.5})
    check_recipe(recipe, 5)
    with pytest.raises(ValueError, match="restain makes 4 classes, so nr_type is 5 with the background, got 3"):
        check_recipe(recipe, 3)
