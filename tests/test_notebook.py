"""The tutorial: its cells run, find what the command line finds, and print what the page says they print."""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import run_infer
from misc.formats.nuclei_json import read_json
from misc.sample import write_samples

NOTEBOOK = ROOT / "docs" / "first_steps.ipynb"
MAX_BYTES = 500_000
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
SOURCES = ["".join(cell["source"]) for cell in CELLS]
# A last cell that writes down what the others found.
FACTS = """
import json, shutil
shutil.copytree(FOLDER / "wsi", {folder!r} + "/wsi")
found = {{
    "xy": nuclei.centroids_xy.tolist(), "types": nuclei.types.tolist(), "untyped": len(untyped), "rows": len(table),
    "areas": sum(len(values) for values in areas.values()), "slide": slide, "spots": spots, "inside": len(inside),
}}
Path({folder!r}, "facts.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    """Return the folder with `facts.json` and the slide's results, and what the cells printed."""
    folder = tmp_path_factory.mktemp("notebook")
    facts = FACTS.format(folder=str(folder))
    has_extra = all(importlib.util.find_spec(name) for name in ("nbclient", "nbformat", "ipykernel"))
    return folder, (run_in_jupyter if has_extra else run_as_script)(facts, folder)


def run_in_jupyter(facts: str, folder: Path) -> str:
    import nbformat

    from benchmarks.notebook import execute

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(facts))
    execute(notebook, NOTEBOOK.parent)
    return printed(cell for cell in notebook.cells if cell.cell_type == "code")


def run_as_script(facts: str, folder: Path) -> str:
    """Run the cells one after the other in one namespace, where requirements-notebook.txt is not installed."""
    script = folder / "cells.py"
    script.write_text("\n\n".join([*SOURCES, facts]), encoding="utf-8")
    shown = {"cwd": NOTEBOOK.parent, "env": os.environ | {"MPLBACKEND": "Agg"}, "capture_output": True, "text": True}
    ended = subprocess.run([sys.executable, "-B", script], **shown)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def printed(cells) -> str:
    outputs = [output for cell in cells for output in cell["outputs"] if output.get("name") == "stdout"]
    return "".join("".join(output["text"]) for output in outputs)


@pytest.fixture(scope="module")
def facts(run) -> dict:
    return json.loads((run[0] / "facts.json").read_text())


def test_the_notebook_finds_what_the_command_line_finds(facts, tmp_path):
    write_samples(tmp_path / "in", ["ihc_haematoxylin.png"])
    weights = ROOT / "pretrained" / "hovernet_he_fast_w025_20x.tar"
    common = [f"--model_path={weights}", "--nr_post_proc_workers=0", "--no_report"]
    assert run_infer.main([*common, "tile", f"--input_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / 'out'}"]) == 0
    nuclei, _ = read_json(tmp_path / "out" / "json" / "ihc_haematoxylin.json")
    assert len(nuclei) > 200
    np.testing.assert_array_equal(facts["xy"], nuclei.centroids_xy)
    np.testing.assert_array_equal(facts["types"], nuclei.types)
    assert facts["rows"] == facts["areas"] == len(nuclei)
    assert facts["untyped"] > 100


def test_its_hot_spots_lie_on_the_slide_and_hold_what_they_say(run, facts):
    nuclei, header = read_json(run[0] / "wsi" / "json" / "colon.json")
    assert len(nuclei) == pytest.approx(len(facts["xy"]), rel=0.1)  # the same picture, with glass around it
    assert facts["slide"]["mpp"] == 0.5
    (epithelial,) = (int(number) for number, (name, _) in header["types"].items() if name == "epithelial")
    x, y = nuclei.centroids_xy.T
    for spot in facts["spots"]:
        x0, y0, x1, y1 = (spot[name] for name in ("x0_px", "y0_px", "x1_px", "y1_px"))
        assert 0 <= x0 < x1 <= facts["slide"]["width"]
        assert 0 <= y0 < y1 <= facts["slide"]["height"]
        inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        assert spot["nuclei"] == inside.sum()
        assert spot["positive"] == (inside & (nuclei.types == epithelial)).sum() > 0
    assert len(facts["spots"]) == 2
    assert facts["spots"][0]["positive"] >= facts["spots"][1]["positive"]
    assert facts["inside"] == facts["spots"][0]["nuclei"]


def test_the_page_shows_what_the_cells_print(run):
    """Numbers aside, which differ a little between machines."""
    said = printed(CELLS)
    assert re.sub(r"\d+(\.\d+)?", "#", run[1]) == re.sub(r"\d+(\.\d+)?", "#", said)
    assert said.count("\n") > 10


def test_the_page_is_small_and_from_no_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < MAX_BYTES
    assert not re.search(r'/tmp|/home|/Users|/work|C:\\\\|"stderr"|"execution"', text)
    outputs = [output for cell in CELLS for output in cell["outputs"] if "data" in output]
    pictures = [base64.b64decode(output["data"]["image/jpeg"]) for output in outputs]
    assert 2 <= len(pictures) <= 3
    assert all(picture.startswith(b"\xff\xd8") for picture in pictures)


def test_the_cells_use_public_names_alone():
    for source in SOURCES:
        for node in ast.walk(ast.parse(source)):
            names = [getattr(node, "attr", ""), *(alias.name for alias in getattr(node, "names", []))]
            names += (getattr(node, "module", None) or "").split(".")
            assert not any(part.startswith("_") for name in names for part in name.split(".")), ast.unparse(node)
