"""`compute_stats.py` on folders of `.mat` files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import scipy.io

import compute_stats
from metrics.folders import score_types
from metrics.type_maps import MERGES


def save(folder, name, inst_map=None, centroids=None, types=None, **extra):
    folder.mkdir(exist_ok=True, parents=True)
    content = dict(extra)
    if inst_map is not None:
        content["inst_map"] = np.asarray(inst_map, np.int32)
    if centroids is not None:
        content["inst_centroid"] = np.asarray(centroids, np.float64).reshape(-1, 2)
        content["inst_type"] = np.asarray(types, np.int32).reshape(-1, 1)
    scipy.io.savemat(folder / f"{name}.mat", content)


@pytest.fixture
def folders(tmp_path):
    """Two images: one by hand (see tests/metrics), one perfect."""
    save(tmp_path / "true", "TCGA-1.2.a", [[1, 1, 0, 2], [1, 1, 0, 2]])
    save(tmp_path / "pred", "TCGA-1.2.a", [[1, 1, 0, 0], [1, 0, 1, 0]])
    for side in ("true", "pred"):
        save(tmp_path / side, "b", [[0, 1, 1]])
    return tmp_path


def call(folders, *argv):
    return compute_stats.main([f"--pred_dir={folders / 'pred'}", f"--true_dir={folders / 'true'}", *argv])


def test_printed_array_is_the_originals(folders, capsys):
    assert call(folders) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(folders / "pred")
    assert lines[1] == "[ 0.80000  0.71429  0.83333  0.80000  0.70000  0.71429]"
    assert lines[2].split() == ["Dice", "AJI", "DQ", "SQ", "PQ", "AJI+"]
    assert lines[3].split()[:4] == ["mean", "of", "2", "0.80000"]


def test_p33_full_names_and_any_slash(folders, capsys):
    argv = [f"--pred_dir={folders / 'pred'}/", f"--true_dir={folders / 'true'}//", "--print_img_stats"]
    assert compute_stats.main(argv) == 0
    assert "TCGA-1.2.a\t0.600000" in capsys.readouterr().out


def test_p33_unpaired_files_are_listed_and_the_others_scored(folders, capsys):
    save(folders / "true", "TCGA-1.2.b", [[1]])
    save(folders / "pred", "TCGA-1.3", [[1]])
    assert call(folders) == 1
    shown = capsys.readouterr()
    assert "TCGA-1.2.b: no prediction" in shown.err
    assert "TCGA-1.3: no truth" in shown.err
    assert "mean of 2" in shown.out


def test_bad_files_are_named_and_the_others_scored(folders, capsys):
    for name, content in (("cut", b"MATLAB 5.0 MAT-file"), ("other", b"")):
        (folders / "pred" / f"{name}.mat").write_bytes(content)
        save(folders / "true", name, [[1]])
    save(folders / "pred", "shape", [[1, 0]])
    save(folders / "true", "shape", [[1]])
    save(folders / "pred", "key", something=1)
    save(folders / "true", "key", [[1]])
    assert call(folders) == 1
    shown = capsys.readouterr()
    for said in ("cut.mat: is no readable", "other.mat: is no readable", "must be of one image", "lacks ['inst_map']"):
        assert said in shown.err
    assert "mean of 2" in shown.out


def test_p12_images_without_nuclei_are_left_out_of_the_mean_and_it_is_said(folders, capsys):
    save(folders / "true", "blank", np.zeros((2, 2)))
    save(folders / "pred", "blank", np.zeros((2, 2)))
    save(folders / "true", "missed", [[0, 1]])
    save(folders / "pred", "missed", [[0, 0]])
    assert call(folders) == 0
    shown = capsys.readouterr()
    assert "left out of the mean: blank" in shown.err
    assert shown.out.splitlines()[1].startswith("[ 0.53333")  # (0.6 + 1 + 0) / 3


def test_out_writes_a_row_for_each_image(folders):
    save(folders / "true", "blank", np.zeros((2, 2)))
    save(folders / "pred", "blank", np.zeros((2, 2)))
    assert call(folders, f"--out={folders / 'scores'}") == 0
    rows = list(csv.reader((folders / "scores" / "scores.csv").open()))
    assert rows[0] == ["image", "Dice", "AJI", "DQ", "SQ", "PQ", "AJI+"]
    assert [row[0] for row in rows[1:]] == ["TCGA-1.2.a", "b", "blank", "mean of 2"]
    assert rows[3][1:] == [""] * 6
    content = json.loads((folders / "scores" / "scores.json").read_text())
    assert content["scores"][2]["PQ"] is None
    assert content["scores"][3]["Dice"] == pytest.approx(0.8)


def test_python_functions_keep_their_shapes(folders, capsys):
    values = compute_stats.run_nuclei_inst_stat(str(folders / "pred"), str(folders / "true"))
    assert values.shape == (6, 2)
    assert values[:, 1] == pytest.approx(np.ones(6), abs=1e-6)


def test_type_scores_by_hand(tmp_path, capsys):
    """Four matched nuclei, one of the wrong type; one missed, one invented."""
    places = [[10 * k, 0] for k in range(5)]
    far = [500, 500]
    save(tmp_path / "true", "a", centroids=places, types=[1, 1, 2, 2, 1])
    save(tmp_path / "pred", "a", centroids=[*places[:4], far], types=[1, 2, 2, 2, 2])
    assert call(tmp_path, "--mode=type") == 0
    lines = capsys.readouterr().out.splitlines()
    f1_detection, accuracy = 2 * 4 / (2 * 4 + 1 + 1), 3 / 4
    f1_type1 = 2 * 1 / (2 * 1 + 2 * 0 + 2 * 1 + 0 + 1)
    f1_type2 = 2 * 2 / (2 * 2 + 2 * 1 + 2 * 0 + 1 + 0)
    expected = [f1_detection, accuracy, f1_type1, f1_type2]
    assert lines[0] == "[" + " ".join(f"{v: 0.5f}" for v in expected) + "]"
    names = "F1 detection accuracy of type F1 type 1 F1 type 2 true nuclei predicted nuclei matched nuclei"
    assert lines[1].split() == names.split()
    assert lines[2].split()[-3:] == ["5", "5", "4"]
    assert compute_stats.run_nuclei_type_stat(tmp_path / "pred", tmp_path / "true", [2])[2] == pytest.approx(f1_type2)


def test_out_writes_types_of_each_image_and_of_all(tmp_path):
    places = [[30 * k, 0] for k in range(3)]
    save(tmp_path / "true", "a", centroids=places, types=[1, 1, 2])
    save(tmp_path / "pred", "a", centroids=places, types=[1, 2, 2])
    save(tmp_path / "true", "b", centroids=places[:2], types=[1, 1])
    save(tmp_path / "pred", "b", centroids=places[1:2], types=[1])
    for side in ("true", "pred"):
        save(tmp_path / side, "blank", centroids=[], types=[])
    assert call(tmp_path, "--mode=type", f"--out={tmp_path / 'scores'}") == 0
    header, a, b, blank, total = csv.reader((tmp_path / "scores" / "scores.csv").open())
    assert header[:5] == ["image", "F1 detection", "accuracy of type", "F1 type 1", "F1 type 2"]
    assert header[5:] == ["true nuclei", "predicted nuclei", "matched nuclei"]
    assert [float(v) for v in a[1:5]] == pytest.approx([1, 2 / 3, 2 / (2 + 2), 2 / (2 + 2)])
    assert [float(v) for v in b[1:4]] == pytest.approx([2 / 3, 1, 2 / (2 + 1)])
    assert (b[4], blank[1:]) == ("", ["", "", "", "", "0", "0", "0"])  # no nucleus of type 2: no score of it
    assert [row[5:] for row in (a, b)] == [["3", "3", "3"], ["2", "1", "1"]]
    assert (total[0], total[5:]) == ("all images", ["5", "4", "4"])
    assert [float(v) for v in total[1:5]] == score_types(tmp_path / "pred", tmp_path / "true").values.tolist()
    content = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert content["scores"][1]["F1 type 2"] is None


def test_maps_of_whole_floats_are_scored_and_fractions_are_refused(folders, capsys):
    """The published .mat files of Kumar and CoNSeP hold floats."""
    whole = scipy.io.loadmat(folders / "true" / "b.mat")["inst_map"]
    scipy.io.savemat(folders / "true" / "b.mat", {"inst_map": whole.astype(np.float64)})
    assert call(folders) == 0
    scipy.io.savemat(folders / "true" / "b.mat", {"inst_map": whole + 0.5})
    assert call(folders) == 1
    assert "integers" in capsys.readouterr().err


def test_p34_consep_is_merged_by_name(tmp_path):
    assert MERGES["consep"] == {3: (3, 4), 4: (5, 6, 7)}
    places = [[30 * k, 0] for k in range(7)]
    save(tmp_path / "true", "a", centroids=places, types=[1, 2, 3, 4, 5, 6, 7])
    save(tmp_path / "pred", "a", centroids=places, types=[1, 2, 3, 3, 4, 4, 4])
    merged = score_types(tmp_path / "pred", tmp_path / "true", merge="consep")
    assert merged.type_ids == [1, 2, 3, 4]
    assert merged.values == pytest.approx(np.ones(6))
    assert score_types(tmp_path / "pred", tmp_path / "true").values[1] == pytest.approx(3 / 7)
    with pytest.raises(ValueError, match="consep"):
        score_types(tmp_path / "pred", tmp_path / "true", merge="x")


def test_not_exhaustive_ignores_what_was_not_looked_at(tmp_path):
    places = [[0, 0], [30, 0]]
    save(tmp_path / "true", "a", centroids=places, types=[1, -1])
    save(tmp_path / "pred", "a", centroids=places, types=[1, 1])
    strict = score_types(tmp_path / "pred", tmp_path / "true", [1])
    lenient = score_types(tmp_path / "pred", tmp_path / "true", [1], exhaustive=False)
    assert strict.values.tolist() == [1, 0.5, pytest.approx(2 / 4)]
    assert lenient.values.tolist() == [1, 1, 1]


def test_p12_no_nucleus_is_made_up(tmp_path):
    save(tmp_path / "true", "blank", centroids=[], types=[])
    save(tmp_path / "pred", "blank", centroids=[[0, 0]], types=[1])
    save(tmp_path / "true", "a", centroids=[[5, 5]], types=[1])
    save(tmp_path / "pred", "a", centroids=[[5, 5]], types=[1])
    scores = score_types(tmp_path / "pred", tmp_path / "true")
    assert scores.type_ids == [1]
    assert scores.values.tolist() == [pytest.approx(2 / 3), 1, pytest.approx(2 / 3)]


def test_labels_without_lists_are_read_from_their_maps(tmp_path):
    inst = np.zeros((40, 40), np.int32)
    inst[2:5, 2:5], inst[20:23, 30:33] = 1, 2
    save(tmp_path / "true", "a", inst, type_map=np.where(inst == 2, 3, inst))
    save(tmp_path / "pred", "a", centroids=[[3, 3], [31, 21]], types=[1, 3])
    assert score_types(tmp_path / "pred", tmp_path / "true").values == pytest.approx(np.ones(4))


def test_maps_and_lists_say_the_same_of_what_was_not_looked_at(tmp_path):
    inst = np.zeros((40, 40), np.int32)
    inst[2:5, 2:5], inst[20:23, 30:33] = 1, 2
    save(tmp_path / "true", "a", inst, type_map=np.choose(inst, [0, -1, 4]))
    save(tmp_path / "pred", "a", centroids=[[3, 3], [31, 21]], types=[1, 4])
    assert score_types(tmp_path / "pred", tmp_path / "true", [4], exhaustive=False).values.tolist() == [1, 1, 1]


def test_a_type_map_of_another_size_is_named(tmp_path):
    save(tmp_path / "true", "a", np.ones((20, 20), np.int32), type_map=np.ones((10, 20), np.int32))
    save(tmp_path / "pred", "a", centroids=[[3, 3]], types=[1])
    save(tmp_path / "true", "b", centroids=[[3, 3]], types=[1])
    save(tmp_path / "pred", "b", centroids=[[3, 3]], types=[1])
    scores = score_types(tmp_path / "pred", tmp_path / "true")
    assert scores.names == ["b"]
    assert "type_map (10, 20)" in scores.failed["a"]


def test_bad_options_are_one_line(folders, capsys, subtests):
    cases = [
        (["--mode=both"], "--mode"),
        (["--merge=x", "--mode=type"], "consep"),
        (["--merge=consep"], "--mode=type"),
        (["--type_uid_list=a", "--mode=type"], "1,2,3"),
    ]
    for argv, said in cases:
        with subtests.test(argv=argv, said=said):
            assert call(folders, *argv) == 1
            assert said in capsys.readouterr().err


def test_missing_folders_are_named(folders, capsys):
    assert compute_stats.main([f"--pred_dir={folders / 'no'}", f"--true_dir={folders / 'true'}"]) == 1
    assert "no such folder" in capsys.readouterr().err
    (folders / "empty").mkdir()
    assert compute_stats.main([f"--pred_dir={folders / 'empty'}", f"--true_dir={folders / 'true'}"]) == 1
    assert "no *.mat" in capsys.readouterr().err
