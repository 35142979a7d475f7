"""How scripts end, and how a batch goes on."""

from __future__ import annotations

import csv
import io
import subprocess
import sys

import pytest
from conftest import ROOT

from misc.batch import print_failed, recorded, run_script
from misc.files import CsvWriter, plain_cell, safe_cell
from misc.machine import check_fits


def raising(error):
    def work():
        raise error

    return work


def test_a_script_ends_with_one_line_and_its_exit_code(capsys):
    for error, code, line in (
        (ValueError("two\nlines"), 1, "a.py: two lines\n"),
        (FileNotFoundError("no such file: x"), 1, "a.py: no such file: x\n"),
        (MemoryError(), 1, "a.py: not enough memory\n"),
        (KeyboardInterrupt(), 130, "a.py: stopped by Ctrl-C; finished files are complete and stay\n"),
    ):
        assert run_script("a.py", raising(error)) == code
        assert capsys.readouterr().err == line
    assert run_script("a.py", lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):  # a defect of ours is no user's mistake
        run_script("a.py", raising(ZeroDivisionError()))


def test_whatever_goes_wrong_with_one_file_is_recorded(capsys):
    failed = {}
    for name, error in (("a", KeyError("x")), ("b", MemoryError("9 GB")), ("c", ValueError("c: is broken"))):
        with recorded(failed, name):
            raise error
    with pytest.raises(KeyboardInterrupt), recorded(failed, "d"):
        raise KeyboardInterrupt
    print_failed("s.py", failed)
    assert capsys.readouterr().err.splitlines() == [
        "s.py: failed: a: has unexpected content: KeyError: 'x'",
        "s.py: failed: b: not enough memory: 9 GB",
        "s.py: failed: c: is broken",
    ]


def test_ctrl_c_ends_every_script_with_130():
    """In a process of its own for each: Ctrl-C comes where the work begins."""
    code = "import sys, {name}\ndef stop(*_): raise KeyboardInterrupt\n"
    code += "{name}.{work} = stop\nsys.exit({name}.main({argv}))"
    folders = ["--input_dir=a", "--output_dir=b"]
    for name, work, argv in (
        ("compute_stats", "run", ["--pred_dir=a", "--true_dir=b"]),
        ("GenerateMasks", "read_options", ["--image_dir=a", "--annotation_dir=b", "--output_dir=c"]),
        ("convert_format", "parse", ["--input=a", "--output_dir=b"]),
        ("plot_heat_map", "parse", ["--json_dir=a", "--output_dir=b"]),
        ("extract_patches", "parse", []),
        ("run_infer", "run_tile", ["tile", *folders]),
        ("run_train", "run", []),
    ):
        text = code.format(name=name, work=work, argv=argv)
        done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 130, done.stderr
        assert done.stderr == f"{name}.py: stopped by Ctrl-C; finished files are complete and stay\n"


def test_cells_that_a_spreadsheet_would_run_are_text():
    text = io.StringIO()
    cells = ["=1+1", "+A1", "-x", "@SUM(A1)", "\tx", "-1.5", -1.5, "a=b", "", None, "'quoted"]
    CsvWriter(text).writerow(cells)
    row = next(csv.reader(io.StringIO(text.getvalue())))
    assert row == ["'=1+1", "'+A1", "'-x", "'@SUM(A1)", "'\tx", "-1.5", "-1.5", "a=b", "", "", "'quoted"]
    assert [plain_cell(safe_cell(cell)) for cell in cells if isinstance(cell, str)] == [
        cell for cell in cells if isinstance(cell, str)
    ]


def test_what_memory_cannot_hold_is_refused():
    check_fits(1, "a byte")
    with pytest.raises(ValueError, match=r"a wish: 1e\+09 GB of memory are needed, .* GB are free"):
        check_fits(1e18, "a wish")
