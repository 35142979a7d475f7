"""`convert_format.py` on files that hold what no slide holds: each is named, the others are converted."""

from __future__ import annotations

import csv

from test_plot_heat_map import SLIDE, nucleus, write_slide

import convert_format
from misc.formats.sedeen import Graphic, read_session, write_session


def test_one_bad_file_does_not_end_the_batch(tmp_path, capsys):
    bad = {
        "contour": ([nucleus(5, 5) | {"contour": [[0, 0], [60_000, 0], [60_000, 60_000]]}], {}, "is no nucleus"),
        "scale": ([nucleus(5, 5)], {"slide": {"scale": 1e300}}, "the scale is 1e+300"),
        "mpp": ([nucleus(5, 5)], {"mpp": 1e-320}, "the pixel size in um is"),
        "types": ([nucleus(5, 5)], {"types": {"2": ["x", [1, 2]]}}, '"types" is not'),
        "type": ([nucleus(5, 5, 2**33)], {}, "OverflowError"),
        "surrogate": ([nucleus(5, 5)], {"types": {"2": ["\ud800", [1, 2, 3]]}}, "surrogate"),
    }
    write_slide(tmp_path / "json", "good", [nucleus(20, 20)], **SLIDE)
    for name, (nuclei, header, _) in bad.items():
        write_slide(tmp_path / "json", name, nuclei, **header)
    for target in ("qupath", "csv"):
        arguments = [f"--input={tmp_path / 'json'}", f"--output_dir={tmp_path / target}", f"--to={target}"]
        assert convert_format.main(arguments) == 1
        printed = capsys.readouterr()
        assert "1 of 7 files converted" in printed.out
        assert printed.err.count("\n") == len(bad)
        for name, (_, _, said) in bad.items():
            line = next(line for line in printed.err.splitlines() if f"{name}.json" in line)
            assert said in line


def test_names_of_types_are_no_formulas_in_the_table(tmp_path):
    types = {"2": ["=1+1", [1, 2, 3]]}
    write_slide(tmp_path / "json", "a", [nucleus(20, 20)], **SLIDE, types=types)
    assert convert_format.main([f"--input={tmp_path / 'json'}", f"--output_dir={tmp_path}", "--to=csv"]) == 0
    with open(tmp_path / "a.csv", newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert (row["name"], row["type"]) == ("'=1+1", "2")


def test_control_characters_do_not_make_a_session_that_nobody_can_read(tmp_path):
    graphic = Graphic("polygon", [[1, 2], [3, 4], [5, 2]], "#ff0000ff", "a\x00b\x1b", "\ud800 weak\ufffe")
    write_session(tmp_path / "a.session.xml", "sli\x07de.svs", 10, 10, 0.5, [graphic])
    session = read_session(tmp_path / "a.session.xml")
    assert session.image_name == "sli\ufffdde.svs"
    assert (session.graphics[0].name, session.graphics[0].description) == ("a\ufffdb\ufffd", "\ufffd weak\ufffd")
