"""Which types `plot_heat_map.py` counts as positive: names decide, and the run says which they are."""

from __future__ import annotations

import json

import pytest
from test_plot_heat_map import SLIDE, nucleus, run, table, write_slide

POSITIVE_FIRST = {"0": ["nolabe", [0, 0, 0]], "1": ["Positive", [255, 0, 0]], "2": ["Negative", [0, 0, 255]]}
LAB = {str(i): [name, [0, 0, 0]] for i, name in enumerate(("negative", "weak", "moderate", "strong"), 1)}
TISSUE = {"1": ["neopla", [255, 0, 0]], "2": ["inflam", [0, 255, 0]]}
# two of type 1, one each of 2, 3 and 4
NUCLEI = [nucleus(20, 20, 1), nucleus(30, 20, 1), nucleus(40, 20, 2), nucleus(50, 20, 3), nucleus(60, 20, 4)]


def positives(tmp_path, name="a") -> str:
    return next(row["positive"] for row in table(tmp_path, "summary.csv") if row["slide"] == name)


def test_names_decide_which_types_are_positive(tmp_path, capsys):
    """By number, types 2, 3, 4 of a network of `1 Positive, 2 Negative` were all its negative nuclei."""
    names = {"1": ["Tumour: Positive", [0, 0, 0]], "2": ["non-positive", [0, 0, 0]], "3": ["ER negative", [0, 0, 0]]}
    names |= {"4": ["STRONG", [0, 0, 0]]}
    for types, options, counted, said in (
        (POSITIVE_FIRST, [], "2", "2 counted (1 Positive)"),
        (LAB, [], "3", "3 counted (2 weak, 3 moderate, 4 strong)"),
        (names, [], "3", "3 counted (1 Tumour: Positive, 4 STRONG)"),
        (POSITIVE_FIRST, ["--positive_types=negative"], "1", "1 counted (2 Negative)"),
        (LAB, ["--positive_types=Strong,1"], "3", "3 counted (4 strong, 1 negative)"),
        (None, [], "3", "taken as 1 negative, 2 weak, 3 moderate, 4 strong"),
        (None, ["--positive_types=1"], "2", "2 counted (1)"),
        (TISSUE, ["--positive_types=all"], "5", "5 counted (all nuclei)"),
    ):
        header = {} if types is None else {"types": types}
        write_slide(tmp_path / "json", "a", NUCLEI, **SLIDE, **header)
        assert run(tmp_path, "--overwrite", *options) == 0
        assert said in capsys.readouterr().out
        assert positives(tmp_path) == counted


def test_no_type_that_says_positive_is_an_error_and_other_slides_are_done(tmp_path, capsys):
    write_slide(tmp_path / "json", "a", NUCLEI, **SLIDE, types=TISSUE)
    write_slide(tmp_path / "json", "b", NUCLEI, **SLIDE, types=POSITIVE_FIRST)
    write_slide(tmp_path / "json", "c", [nucleus(20, 20, 5)], **SLIDE)
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert "a: no type's name says positive, weak, moderate or strong (1 neopla, 2 inflam)" in error
    assert "c: the file names no types, and they are not the default ones" in error
    assert error.count("\n") == 2
    assert [(row["slide"], row["positive"]) for row in table(tmp_path, "summary.csv")] == [
        *(("a", ""), ("b", "2"), ("c", "")),
    ]
    assert run(tmp_path, "--positive_types=Positive", "--overwrite") == 1
    assert "a: --positive_types: no type is called `Positive`; there is 1 neopla, 2 inflam" in capsys.readouterr().err


def test_names_may_come_from_a_file_and_are_compared(tmp_path, capsys):
    (tmp_path / "types.json").write_text(json.dumps(POSITIVE_FIRST))
    write_slide(tmp_path / "json", "a", NUCLEI, **SLIDE)
    assert run(tmp_path, f"--type_info_path={tmp_path / 'types.json'}") == 0
    assert positives(tmp_path) == "2"
    assert "otherwise" not in capsys.readouterr().out
    write_slide(tmp_path / "json", "a", NUCLEI, **SLIDE, types=TISSUE)
    assert run(tmp_path, f"--type_info_path={tmp_path / 'types.json'}", "--overwrite") == 0
    assert "the file calls its types 1 neopla, 2 inflam, --type_info_path otherwise" in capsys.readouterr().out


def test_two_runs_on_one_folder_keep_the_rows_of_both(tmp_path, monkeypatch):
    """The second one runs as a whole while the first one is between its last slide and its tables."""
    from misc.ihc.heat_map import run as runs

    for name in ("a", "b"):
        write_slide(tmp_path / "json", name, NUCLEI, **SLIDE)
    merge, others = runs.merge_table, []

    def merge_after_another_run(*args):
        if not others:
            others.append("b")
            assert run(tmp_path, "--pattern=b*") == 0
        merge(*args)

    monkeypatch.setattr(runs, "merge_table", merge_after_another_run)
    assert run(tmp_path, "--pattern=a*") == 0
    assert [row["slide"] for row in table(tmp_path, "summary.csv")] == ["a", "b"]
    assert [row["slide"] for row in table(tmp_path, "hotspots.csv")] == ["a", "b"]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_spreadsheet_does_not_run_the_name_of_a_slide(tmp_path):
    """And a later run finds the row again by its name."""
    write_slide(tmp_path / "json", "=1+1", NUCLEI, **SLIDE)
    write_slide(tmp_path / "json", "b", NUCLEI, **SLIDE)
    for _ in range(2):
        assert run(tmp_path, "--overwrite", "--pattern==*") == 0
        assert run(tmp_path, "--overwrite", "--pattern=b*") == 0
        assert [row["slide"] for row in table(tmp_path, "summary.csv")] == ["'=1+1", "b"]


@pytest.mark.parametrize(
    ("name", "nuclei", "header", "said"),
    [
        (
            "contour",
            [{**nucleus(5, 5), "contour": [[0, 0], [60_000, 0], [60_000, 60_000]]}],
            {},
            "60000 px is no nucleus",
        ),
        ("far", [nucleus(1e9, 5)], {}, "bins are too many"),
        ("scale", [nucleus(5, 5)], {"slide": {"scale": 1e300}}, "the scale is 1e+300"),
        ("mpp", [nucleus(5, 5)], {"mpp": 1e-320}, "the pixel size in um is"),
        ("types", [nucleus(5, 5)], {"types": {"1": 5}}, '"types" is not'),
        ("type", [nucleus(5, 5, 2**33)], {}, "OverflowError"),
    ],
)
def test_one_bad_file_does_not_end_the_batch(tmp_path, capsys, name, nuclei, header, said):
    write_slide(tmp_path / "json", "good", NUCLEI, **SLIDE)
    write_slide(tmp_path / "json", name, nuclei, **header)
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert positives(tmp_path, "good") == "3"
