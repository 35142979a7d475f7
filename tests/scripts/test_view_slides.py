"""The script of the viewer: options, Ctrl-C, and what it exports."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request

import cv2
import numpy as np
import pytest
from conftest import ROOT

import view_slides
from misc.formats.nuclei_json import write_json
from misc.nuclei import Nuclei


@pytest.fixture
def place(tmp_path):
    """Results of one slide: a square of one nucleus."""
    ring = np.array([[10, 10], [30, 10], [30, 30], [10, 30]], np.int32)
    nuclei = Nuclei.from_contours([1], [[[10, 10], [31, 31]]], [[20, 20]], [ring])
    for folder in ("json", "slides"):
        (tmp_path / folder).mkdir()
    write_json(tmp_path / "json" / "a.json", nuclei)
    cv2.imwrite(str(tmp_path / "slides" / "a.png"), np.full((60, 80, 3), 200, np.uint8))
    return tmp_path


def both(place) -> list[str]:
    return [f"--results_dir={place}", f"--wsi_dir={place / 'slides'}"]


def test_it_says_where_it_listens_and_ends_with_ctrl_c(place):
    # SIGINT is ignored where the tests run in the background
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); import view_slides; "
    code += f"sys.exit(view_slides.main({[*both(place), '--no_browser']}))"
    command = [sys.executable, "-c", code]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    said = run.stdout.readline()
    assert said.startswith("1 slide at http://127.0.0.1:")
    with urllib.request.urlopen(said.split()[3]) as answer:
        assert answer.status == 200
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate()
    assert run.returncode == 130
    assert "stopped by Ctrl-C" in errors
    assert "Traceback" not in errors


def test_options_that_make_no_sense_are_one_line(place, capsys, subtests):
    one = [f"--json={place / 'json' / 'a.json'}", f"--slide={place / 'slides' / 'a.png'}"]
    cases = {
        "no such folder: nowhere": ["--results_dir=nowhere", "--wsi_dir=nowhere"],
        "no JSON file of nuclei": [f"--results_dir={place / 'slides'}", f"--wsi_dir={place / 'slides'}"],
        "no such file or folder": [*both(place), "--compare=nowhere"],
        "--port is a": [*both(place), "--port=web"],
        "--mpp is a number above 0": [*both(place), "--mpp=-1"],
        "--region says what to export": [*one, "--region=0,0,9,9"],
        "--region is x,y,w,h": [*one, "--export=out", "--region=0,0,9"],
    }
    for said, options in cases.items():
        with subtests.test(said=said):
            assert view_slides.main(options) == 1
            assert said in capsys.readouterr().err


def test_a_region_is_exported_and_what_has_none_is_said(place, capsys):
    out = place / "out"
    assert view_slides.main([*both(place), f"--export={out}"]) == 1
    assert "a: has no hot spots or regions" in capsys.readouterr().err
    assert view_slides.main([*both(place), f"--export={out}", "--region=5,5,50,40"]) == 0
    assert "1 place of 1 slide" in capsys.readouterr().out
    place_0 = (out / "place_0.js").read_text()
    assert '"size": [50, 40]' in place_0
    assert '"contour": [[5.0, 5.0], [25.0, 5.0], [25.0, 25.0], [5.0, 25.0]]' in place_0
    assert "Content-Security-Policy" in (out / "index.html").read_text()
    assert view_slides.main([*both(place), f"--export={out}", "--region=500,5,50,40"]) == 1
    assert "lies outside the slide" in capsys.readouterr().err
