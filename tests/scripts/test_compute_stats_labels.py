"""`compute_stats.py` on labels of all kinds, with types by name, and on folders that were swapped."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import scipy.io

import compute_stats
from misc.formats.labels import prediction_keys, types_text

POSITIVE_FIRST = {1: ("Positive", (255, 0, 0)), 2: ("Negative", (0, 0, 255))}
DAB = {1: ("negative", (0, 0, 0)), 2: ("weak", (0, 0, 0)), 3: ("moderate", (0, 0, 0)), 4: ("strong", (0, 0, 0))}
PLACES = np.array([[10.0, 20], [40, 12], [60, 50], [15, 70], [70, 75]])
INST = np.zeros((90, 90), np.int32)
for _id, (_x, _y) in zip((4, 2, 9, 5, 7), PLACES.astype(int), strict=True):  # in no order, with gaps
    INST[_y - 3 : _y + 4, _x - 3 : _x + 4] = _id
TYPES = np.array([1, 1, 2, 2, 1])


def save(path, **content):
    path.parent.mkdir(exist_ok=True)
    scipy.io.savemat(path, content)


def predict(folder, xy=PLACES, types=TYPES, type_info=POSITIVE_FIRST):
    lists = {} if types is None else {"inst_type": np.asarray(types)[:, None]}
    lists |= {"inst_uid": np.arange(1, len(xy) + 1)[:, None], "inst_centroid": xy}
    save(folder / "pred" / "a.mat", inst_map=INST, **lists, **prediction_keys(type_info))


def call(folder, *options, mode="type") -> int:
    places = [f"--pred_dir={folder / 'pred'}", f"--true_dir={folder / 'true'}"]
    return compute_stats.main([*places, f"--mode={mode}", *options])


def by_rising_id(values) -> np.ndarray:
    return np.asarray(values)[np.argsort([4, 2, 9, 5, 7])]


def test_every_kind_of_label_that_training_takes_is_scored(tmp_path, capsys):
    """The same nuclei as lists, as maps, as Lizard has them, as MATLAB 7.3 and NumPy files: all scores are 1."""
    predict(tmp_path)
    table = np.zeros(10, np.int32)
    table[[4, 2, 9, 5, 7]] = TYPES
    type_map = table[INST]
    labels = {
        "a list of types": {"inst_map": INST, "inst_type": by_rising_id(TYPES)[:, None]},
        "of ids in the order of the file": {"inst_map": INST, "inst_type": TYPES, "inst_uid": [4, 2, 9, 5, 7]},
        "maps": {"inst_map": INST, "type_map": type_map},
        "Lizard": {"inst_map": INST, "id": [[4], [2], [9], [5], [7]], "class": TYPES[:, None], "centroid": PLACES},
        "Lizard without centroids": {"inst_map": INST, "id": [[4], [2], [9], [5], [7]], "class": TYPES[:, None]},
    }
    path = tmp_path / "true" / "a.mat"
    for kind, content in labels.items():
        save(path, **content)
        assert call(tmp_path) == 0, kind
        assert capsys.readouterr().out.splitlines()[0] == "[ 1.00000  1.00000  1.00000  1.00000]", kind
        with h5py.File(path, "w", userblock_size=512) as file:  # as MATLAB 7.3: the axes in the other order
            for key, value in content.items():
                file[key] = np.atleast_2d(np.asarray(value, np.float64)).T
        head = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
        path.write_bytes(head + path.read_bytes()[len(head) :])
        assert call(tmp_path) == 0, f"{kind}, v7.3"
        assert capsys.readouterr().out.splitlines()[0] == "[ 1.00000  1.00000  1.00000  1.00000]", kind
    for side in ("true", "pred"):
        np.save(tmp_path / side / "a.npy", np.stack([INST, type_map], axis=-1))
    for mode, said in (
        ("type", "[ 1.00000  1.00000  1.00000  1.00000]"),
        ("instance", "[ 1.00000" + "  1.00000" * 5 + "]"),
    ):
        assert call(tmp_path, "--ext=.npy", mode=mode) == 0
        assert said in capsys.readouterr().out


def test_the_cases_of_lizard_and_numpy(shared, capsys):
    for case, options in (("09-lizard-stats", ["--mode=type"]), ("15-npy-labels", ["--ext=.npy"])):
        folder = shared / "cases" / case
        assert compute_stats.main([f"--pred_dir={folder / 'p'}", f"--true_dir={folder / 't'}", *options]) == 0
        numbers = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("["))
        assert set(numbers.strip("[]").split()) == {"1.00000"}


def test_a_turned_list_of_centroids_is_refused(tmp_path, capsys):
    """(2, N) read as (N, 2) would pair coordinates of different nuclei."""
    for turned in ("true", "pred"):
        predict(tmp_path, PLACES.T if turned == "pred" else PLACES)
        save(tmp_path / "true" / "a.mat", inst_centroid=PLACES.T if turned == "true" else PLACES, inst_type=TYPES)
        assert call(tmp_path) == 1
        error = capsys.readouterr().err
        assert f"{turned}/a.mat: " in error
        assert "(5, 2), x then y, is needed" in error or "5 types in inst_type, but 2 ids" in error


def test_swapped_folders_are_an_error(tmp_path, capsys):
    predict(tmp_path)
    save(tmp_path / "true" / "a.mat", inst_map=INST, inst_type=by_rising_id(TYPES))
    for mode in ("type", "instance"):
        swapped = [f"--pred_dir={tmp_path / 'true'}", f"--true_dir={tmp_path / 'pred'}", f"--mode={mode}"]
        assert compute_stats.main(swapped) == 1
        error = capsys.readouterr().err
        assert "pred/a.mat is a prediction" in error
        assert "are --true_dir and --pred_dir swapped?" in error
        assert error.count("\n") == 1
        assert call(tmp_path, mode=mode) == 0
        capsys.readouterr()


def test_a_network_without_types_is_scored_by_detection_alone(tmp_path, capsys):
    predict(tmp_path, PLACES[:4], types=None)
    save(tmp_path / "true" / "a.mat", inst_map=INST, inst_type=by_rising_id(TYPES))
    assert call(tmp_path, f"--out={tmp_path / 'out'}") == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == f"[ {2 * 4 / (2 * 4 + 1):.5f}]"
    assert "this network has no types" in printed
    assert list(json.loads((tmp_path / "out" / "scores.json").read_text())["scores"][0]) == [
        *("image", "F1 detection", "true nuclei", "predicted nuclei", "matched nuclei")
    ]
    save(tmp_path / "true" / "b.mat", inst_map=INST, inst_type=by_rising_id(TYPES))
    save(tmp_path / "pred" / "b.mat", inst_map=INST, inst_type=by_rising_id(TYPES))
    assert call(tmp_path) == 1
    assert "failed: a: its prediction has no types" in capsys.readouterr().err


def test_types_are_printed_by_name_and_other_names_are_warned_of(tmp_path, capsys):
    """`positive` is 2 in the truth and 1 in the prediction: scored by number alone that is silently 0."""
    predict(tmp_path)
    names = types_text({1: ("negative", (0, 0, 0)), 2: ("positive", (0, 0, 0))})
    save(tmp_path / "true" / "a.mat", inst_map=INST, inst_type=by_rising_id(3 - TYPES), type_info=names)
    assert call(tmp_path) == 0
    printed = capsys.readouterr()
    assert "truth has the types 1 negative, 2 positive, the prediction 1 Positive, 2 Negative" in printed.err
    assert call(tmp_path, "--true_types=positive=Positive,negative=Negative", "--type_uid_list=positive") == 0
    printed = capsys.readouterr()
    assert "F1 Positive" in printed.out
    assert printed.out.splitlines()[0] == "[ 1.00000  1.00000  1.00000]"
    assert "WARNING" not in printed.err


def test_dab_classes_are_scored_against_positive_and_negative(tmp_path, capsys):
    predict(tmp_path)
    dab = np.array([2, 4, 1, 1, 3])
    save(tmp_path / "true" / "a.mat", inst_map=INST, inst_type=by_rising_id(dab), type_info=types_text(DAB))
    (tmp_path / "merge.json").write_text('{"Positive": ["weak", "moderate", 4], "Negative": ["negative"]}')
    (tmp_path / "map.json").write_text('{"negative": "Negative", "weak": 1, "moderate": 1, "strong": "positive"}')
    for option in (
        f"--merge={tmp_path / 'merge.json'}",
        f"--true_types={tmp_path / 'map.json'}",
        "--true_types=negative=Negative,weak=Positive,moderate=Positive,strong=Positive",
    ):
        assert call(tmp_path, option) == 0
        printed = capsys.readouterr().out
        assert printed.splitlines()[0] == "[ 1.00000  1.00000  1.00000  1.00000]", option
        assert printed.splitlines()[1].split()[5:9] == ["F1", "Positive", "F1", "Negative"]
    # the other way round: a network of four classes, and a truth of two
    predict(tmp_path, types=dab, type_info=DAB)
    names = types_text(POSITIVE_FIRST)
    save(tmp_path / "true" / "a.mat", inst_map=INST, inst_type=by_rising_id(TYPES), type_info=names)
    assert call(tmp_path, "--pred_types=negative=Negative,weak=Positive,moderate=Positive,strong=Positive") == 0
    assert capsys.readouterr().out.splitlines()[0] == "[ 1.00000  1.00000  1.00000  1.00000]"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--true_types=weak"], "--true_types takes type=type,... by name or number"),
        (["--true_types=faint=Positive"], "--true_types: no type is called `faint`"),
        (["--pred_types=1=much"], "--pred_types: no type is called `much`"),
        (["--type_uid_list=faint"], "no type is called `faint`; there is 1 Positive, 2 Negative"),
    ],
)
def test_types_that_nobody_has_are_one_line(tmp_path, capsys, options, said):
    predict(tmp_path)
    save(tmp_path / "true" / "a.mat", inst_map=INST, inst_type=by_rising_id(TYPES))
    assert call(tmp_path, *options) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert call(tmp_path, *options, mode="instance") == 1
    assert "it goes with --mode=type" in capsys.readouterr().err


def test_files_that_declare_more_than_memory_holds_or_are_none_are_named(tmp_path, capsys, monkeypatch):
    predict(tmp_path)
    save(tmp_path / "true" / "a.mat", inst_map=INST, inst_type=by_rising_id(TYPES))
    for name in ("text", "archive", "huge"):
        for side in ("true", "pred"):
            np.save(tmp_path / side / f"{name}.npy", INST)
    np.save(tmp_path / "true" / "text.npy", np.array([["a"]]))
    with open(tmp_path / "true" / "archive.npy", "wb") as out:
        np.savez(out, INST)
    with open(tmp_path / "true" / "huge.npy", "wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "<i4", "fortran_order": False, "shape": (10**6, 10**6)})
    assert call(tmp_path, "--ext=.npy", mode="instance") == 1
    error = capsys.readouterr().err
    assert error.count("failed: ") == 3
    assert "text.npy: inst_map: a label map holds integers" in error
    assert "archive.npy: is an archive" in error
    monkeypatch.setattr("misc.machine.available_memory", lambda: 100_000)
    assert call(tmp_path, mode="instance") == 1
    assert "what it declares: " in capsys.readouterr().err
