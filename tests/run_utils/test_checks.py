"""Wrong data are found before the first step."""

from __future__ import annotations

import numpy as np
import pytest

from run_utils.checks import check_patches, list_patches, source_images, type_sampling_weights


def write(path, shape=(8, 8, 5), dtype=np.int16, **values):
    patch = np.zeros(shape, dtype)
    for channel, value in values.items():
        patch[0, 0, int(channel[1:])] = value
    np.save(path, patch)
    return path


def test_folders_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train_patches_path \(train_dir_list"):
        list_patches(["train_patches_path"], "train_dir_list")
    with pytest.raises(ValueError, match="no .npy patches"):
        list_patches([tmp_path], "train_dir_list")
    with pytest.raises(ValueError, match="names no folder"):
        list_patches([], "valid_dir_list")


def test_p33_folder_names_with_brackets_and_any_slash(tmp_path):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    write(folder / "x_000.npy")
    assert len(list_patches([f"{folder}/"], "train_dir_list")) == 1


def test_wrong_patches_are_named(tmp_path, subtests):
    cases = [
        ({"shape": (8, 8)}, None, r"shape \(8, 8\)"),
        ({"shape": (8, 8, 3)}, None, r"shape \(8, 8, 3\)"),
        ({"dtype": np.float32}, None, "whole numbers"),
        ({"c4": 3}, 3, "type id 3; nr_type = 3 .* 0 to 2"),
        ({"c4": -1}, 3, "type id -1"),
    ]
    for options, nr_types, message in cases:
        with subtests.test(options=options, nr_types=nr_types, message=message):
            write(tmp_path / "good.npy")
            bad = write(tmp_path / "bad.npy", **options)
            with pytest.raises(ValueError, match=message) as caught:
                check_patches([tmp_path / "good.npy", bad], nr_types)
            assert "bad.npy" in str(caught.value)
            assert "\n" not in str(caught.value)


def test_a_file_that_is_no_array(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="x.npy is no readable"):
        check_patches([tmp_path / "x.npy"], None)


def test_pixels_of_each_type_are_counted(tmp_path):
    counts = check_patches([write(tmp_path / "a.npy", c4=2), write(tmp_path / "b.npy")], 3)
    assert counts.tolist() == [[63, 0, 1, 0], [64, 0, 0, 0]]
    assert check_patches([tmp_path / "a.npy"], None) is None


def test_rare_types_weigh_more():
    counts = np.array([[9, 100, 0], [9, 0, 4], [9, 50, 0], [9, 0, 0]])  # 150 px of type 1, 4 px of type 2
    assert type_sampling_weights(counts, 1.0).tolist() == [1, 37.5, 1, 1]
    assert type_sampling_weights(counts, 0.0).tolist() == [1, 1, 1, 1]


def test_source_images(tmp_path):
    paths = [tmp_path / name for name in ("TCGA-1.2_000.npy", "TCGA-1.2_001.npy", "b_c_010.npy", "single.npy")]
    assert source_images(paths) == ["TCGA-1.2", "b_c", "single"]
