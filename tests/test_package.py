"""The installed package: the same tree, its scripts as commands, from any folder."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import pytest
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SUFFIXES = (".py", ".toml", ".txt", ".md", ".json", ".tar")


def test_every_package_and_script_is_installed():
    tree = {path.parent for path in ROOT.glob("*/**/__init__.py")} | {ROOT, ROOT / "pretrained"}
    tree = {path.relative_to(ROOT).parts for path in tree if ".venv" not in path.parts}
    packages = {tuple(name.split(".")[1:]) for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert packages == {parts for parts in tree if not set(parts[:1]) & {"benchmarks", "tests", "build"}}
    import console

    for entry in PROJECT["project"]["scripts"].values():
        assert callable(getattr(console, entry.rpartition(":")[2]))
    called = (ROOT / "console.py").read_text(encoding="utf-8")
    for script in ROOT.glob("*.py"):
        if script.name != "console.py" and "docopt" in script.read_text(encoding="utf-8"):
            assert f'run("{script.stem}")' in called, f"no command for {script.name}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment with the wheel and, for want of a network, a look at the packages that it depends on."""
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns(".*", "tests", "benchmarks", "docs", "build", "logs", "dataset", "*.egg-info")
    shutil.copytree(ROOT, folder / "tree", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "tree"]
    subprocess.run([*pip, *wheel], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", *folder.glob("*.whl")], check=True)
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    Path(where.stdout.strip(), "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "env" / "bin"


def test_an_image_from_any_folder(environment, kumar, tmp_path):
    image = cv2.imread(str(next((kumar / "Test_same" / "Images").iterdir())))
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), image[:300, :300])
    (weights,) = environment.parent.glob("lib/*/site-packages/hovernet_toolkit/pretrained/hovernet_fast_w025_20x.tar")
    command = [environment / "hovernet-infer", f"--model_path={weights}", "--gpu=", "--nr_post_proc_workers=1"]
    options = ["--input_dir=in", "--output_dir=out", "--mpp=0.25"]
    ended = subprocess.run([*command, "tile", *options], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads((tmp_path / "out" / "json" / "a.json").read_text())["nuc"]) > 20


def test_the_tutorial_finds_the_installed_package(environment, tmp_path):
    notebook = json.loads((ROOT / "docs" / "first_steps.ipynb").read_text(encoding="utf-8"))
    first = "".join(next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")["source"])
    code = f"{first}\nimport plot_heat_map\nassert plot_heat_map.__file__.startswith(str(TOOLKIT))\nprint(TOOLKIT)"
    ended = subprocess.run([environment / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert Path(ended.stdout.strip()).name == "hovernet_toolkit"
    assert list(Path(ended.stdout.strip(), "pretrained").glob("*he_fast*.tar"))
