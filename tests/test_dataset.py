"""Images and labels of each data set, as it stores them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import scipy.io

from dataset import DATASETS, PanNuke, get_dataset

INST = np.zeros((6, 8), np.int32)
INST[1:3, 1:3], INST[4:6, 5:8], INST[0, 6] = 7, 2, 4  # ids in no order, with gaps


def save(path, **content):
    scipy.io.savemat(path, content)
    return path


def test_names_in_any_case():
    assert set(DATASETS) == {"kumar", "cpm17", "consep", "pannuke", "monusac", "lizard", "mat"}
    assert type(get_dataset("CoNSeP")) is DATASETS["consep"]
    with pytest.raises(ValueError, match=r"unknown data set `squares`; there is kumar, .*, mat"):
        get_dataset("squares")


def test_type_ids():
    """As FORMATS has them."""
    assert get_dataset("pannuke").type_names[5].startswith("non-neoplastic")
    assert get_dataset("monusac").type_names == {1: "epithelial", 2: "lymphocyte", 3: "macrophage", 4: "neutrophil"}
    assert list(get_dataset("consep").type_names) == [1, 2, 3, 4]


def test_p34_consep_types_are_merged(tmp_path):
    """1 other, 2 inflammatory, 3 and 4 epithelial, 5 to 7 spindle-shaped."""
    raw = np.arange(8, dtype=np.int32)[None]
    path = save(tmp_path / "a.mat", inst_map=raw, type_map=raw)
    label = get_dataset("consep").load_ann(path, with_type=True)
    assert label[0, :, 1].tolist() == [0, 1, 2, 3, 3, 4, 4, 4]
    assert label[0, :, 0].tolist() == list(range(8))
    assert get_dataset("mat").load_ann(path, with_type=True)[0, :, 1].tolist() == list(range(8))


def test_real_labels(kumar, shared):
    path = kumar / "Train" / "Labels" / "TCGA-18-5592-01Z-00-DX1.mat"
    label = get_dataset("kumar").load_ann(path)
    assert (label.shape, label.dtype, label.max()) == ((1000, 1000, 1), np.int32, 480)
    image = get_dataset("kumar").load_img(str(kumar / "Train" / "Images" / "TCGA-18-5592-01Z-00-DX1.png"))
    assert (image.shape, image.dtype) == ((1000, 1000, 3), np.uint8)
    assert image[..., 0].mean() > image[..., 1].mean()  # red is more than green on H&E: RGB, not BGR
    with pytest.raises(ValueError, match="no types; use --no_type"):
        get_dataset("kumar").load_ann(path, with_type=True)
    breast = shared / "data" / "pannuke_breast" / "Labels" / "00000010.mat"
    label = get_dataset("pannuke").load_ann(breast, with_type=True)
    assert label.shape == (256, 256, 2)
    assert set(np.unique(label[..., 1])) <= {0, 1, 2}


def test_types_come_from_a_list_where_there_is_no_map(tmp_path):
    """`inst_type` belongs to `inst_uid`, or to the ids in rising order."""
    expected = np.select([INST == 7, INST == 2, INST == 4], [3, 1, 2])
    with_uid = save(tmp_path / "a.mat", inst_map=INST, inst_type=[[3], [1], [2]], inst_uid=[[7], [2], [4]])
    without = save(tmp_path / "b.mat", inst_map=INST, inst_type=[[1], [2], [3]])
    for path in (with_uid, without):
        assert np.array_equal(get_dataset("mat").load_ann(path, True)[..., 1], expected)


def test_lizard_ids_are_in_no_order(tmp_path):
    path = save(tmp_path / "a.mat", inst_map=INST, id=[[4], [7], [2]], **{"class": [[6], [1], [2]]})
    types = get_dataset("lizard").load_ann(path, True)[..., 1]
    assert np.array_equal(types, np.select([INST == 4, INST == 7, INST == 2], [6, 1, 2]))


def test_labels_as_matlab_users_save_them(tmp_path):
    """Whole numbers as double."""
    label = get_dataset("mat").load_ann(save(tmp_path / "a.mat", inst_map=INST.astype(float)))
    assert label.dtype == np.int32
    assert np.array_equal(label[..., 0], INST)


def test_wrong_labels_are_one_line(tmp_path, subtests):
    cases = [
        ({"labels": INST}, "has no inst_map; it holds labels"),
        ({"inst_map": INST}, "neither type_map nor inst_type"),
        ({"inst_map": INST + 0.5, "type_map": INST}, "inst_map holds numbers that are no ids"),
        ({"inst_map": INST - 1, "type_map": INST}, "negative"),
        ({"inst_map": INST, "type_map": INST[1:]}, "must be one size"),
        ({"inst_map": INST, "inst_type": [[1], [2]]}, "2 types in inst_type for 3 instances"),
        ({"inst_map": INST, "inst_type": [[1], [2]], "inst_uid": [[7], [2]]}, "no type for instance 4"),
        ({"inst_map": np.zeros((4, 4, 3))}, "has shape"),
    ]
    for content, message in cases:
        with subtests.test(message=message):
            with pytest.raises(ValueError, match=message) as caught:
                get_dataset("mat").load_ann(save(tmp_path / "a.mat", **content), with_type=True)
            assert "\n" not in str(caught.value)


def test_files_that_are_no_labels(tmp_path):
    path = tmp_path / "a.mat"
    with pytest.raises(FileNotFoundError, match="no such label"):
        get_dataset("mat").load_ann(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    with pytest.raises(ValueError, match="save -v7"):
        get_dataset("mat").load_ann(path)
    save(path, inst_map=np.arange(10_000).reshape(100, 100))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match="no readable .mat"):
        get_dataset("mat").load_ann(path)


def masks(*squares) -> np.ndarray:
    """(20, 20, 6) as PanNuke has them: (channel, id, slice of both axes)."""
    result = np.zeros((20, 20, 6))
    for channel, number, where in squares:
        result[where, where, channel] = number
    result[..., 5] = result[..., :5].max(axis=-1) == 0
    return result


def test_pannuke_masks_become_instances_and_types():
    """Two types may use one id; the smaller nucleus is on top, and a hidden one is counted."""
    label, hidden = PanNuke.label_of(masks((0, 3, slice(0, 4)), (0, 9, slice(10, 20)), (4, 3, slice(12, 14))))
    assert hidden == 0
    assert label[0, 0].tolist() == [1, 1]
    assert label[10, 10].tolist() == [2, 1]
    assert label[13, 13].tolist() == [3, 5]
    assert label[5, 5].tolist() == [0, 0]
    same = masks((1, 1, slice(2, 5)), (2, 1, slice(2, 5)))
    label, hidden = PanNuke.label_of(same)
    assert (hidden, label[3, 3].tolist()) == (1, [1, 2])


def test_p12_pannuke_patch_without_a_nucleus():
    label, hidden = PanNuke.label_of(masks())
    assert (label.any(), hidden) == (False, 0)


def test_pannuke_arrays_are_unpacked(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 20, 20, 3)).astype(np.float64)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "masks.npy", np.stack([masks(), masks((3, 8, slice(2, 6))), masks((0, 1, slice(0, 2)))]))
    arguments = (tmp_path / "images.npy", tmp_path / "masks.npy", tmp_path / "out")
    assert PanNuke.unpack(*arguments) == (3, 0, 0)
    for index in range(3):
        image = cv2.imread(str(tmp_path / "out" / "Images" / f"{index:05d}.png"))[..., ::-1]
        assert np.array_equal(image, images[index])
    path = tmp_path / "out" / "Labels" / "00001.mat"
    content = scipy.io.loadmat(path)
    assert content["inst_type"].tolist() == [[4]]
    assert content["inst_centroid"].tolist() == [[3.5, 3.5]]
    label = get_dataset("pannuke").load_ann(path, True)
    assert (label[2:6, 2:6] == (1, 4)).all()
    assert np.count_nonzero(label) == 2 * 16
    assert scipy.io.loadmat(tmp_path / "out" / "Labels" / "00000.mat")["inst_centroid"].shape == (0, 2)
    path.unlink()
    assert PanNuke.unpack(*arguments) == (1, 2, 0)
    np.save(tmp_path / "images.npy", 255 - images)  # the next fold
    with pytest.raises(ValueError, match=r"00000\.png is from other arrays .*another --output_dir, or --overwrite"):
        PanNuke.unpack(*arguments)
    assert np.array_equal(cv2.imread(str(tmp_path / "out" / "Images" / "00000.png"))[..., ::-1], images[0])
    assert PanNuke.unpack(*arguments, overwrite=True) == (3, 0, 0)
    with pytest.raises(ValueError, match=r"\(N, H, W, 6\) are needed"):
        PanNuke.unpack(tmp_path / "masks.npy", tmp_path / "masks.npy", tmp_path / "out")
