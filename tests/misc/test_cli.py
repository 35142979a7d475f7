"""Command lines: what is wrong with one is one line that names it, in every script; none needs what is not there."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from misc.cli import number, numbers, read, run_command
from misc.text import counted, first_names, print_table
from misc.usage import UsageError

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if "run_command(" in path.read_text(encoding="utf-8"))

TEXT = """Does a thing.

Usage:
  thing.py --in_dir=<dir> --out_dir=<dir> [options]
  thing.py --check=<dir> [--deep]
  thing.py unpack --in_dir=<dir> [--deep]
  thing.py (-h | --help)

Options:
  -h --help        Show this text.
  --in_dir=<dir>   Folder.
  --out_dir=<dir>  Folder.
  --check=<dir>    Folder.
  --deep           Look deeper.
  --mpp=<um>       Micrometres. [default: 0.25]
  --mode=<mode>    Mode.
  --model=<file>   Model.
"""


def test_each_mistake_of_a_command_line_is_named(subtests):
    both = ["--in_dir=a", "--out_dir=b"]
    for argv, said in (
        ([*both, "--mmp=1"], "no option --mmp; the nearest is `--mpp`"),
        ([*both, "-mpp=1"], "no option -mpp; the nearest is `--mpp`"),
        ([*both, "—mpp=1"], "no option —mpp; the nearest is `--mpp`"),
        ([*both, "--zzz"], "no option --zzz (thing.py --help"),
        ([*both, "--mod=x"], "--mod may be --mode or --model; write it out"),
        ([*both, "--mpp"], "--mpp needs a value, as in --mpp=..."),
        ([*both, "--deep=yes"], "--deep takes no value, got `yes`"),
        ([*both, "--mpp=1", "--mpp=2"], "--mpp is given twice"),
        ([*both, "extra"], "no command `extra`; there are: unpack"),
        ([*both, "--check=c"], "--check does not go with --in_dir, --out_dir"),
        (["unpak", "--in_dir=a"], "no command `unpak`; the nearest is `unpack`"),
        (["unpack"], "--in_dir=<dir> is missing (thing.py unpack --help"),
        (["--out=b"], "--in_dir=<dir> is missing"),
        ([], "--check=<dir> is missing"),
    ):
        with subtests.test(argv=argv), pytest.raises(UsageError) as error:
            read(TEXT, argv)
        assert said in str(error.value), argv
        assert "\n" not in str(error.value)
    assert read(TEXT, ["--in=a", "--out", "b", "--mp", "-1"])["--mpp"] == "-1"  # as docopt abbreviates
    with pytest.raises(UsageError, match="--shard goes with `wsi`"):
        read(TEXT, ["--shard=0"], {"--shard": "with `wsi`"})


def test_a_mistyped_option_is_one_line_in_every_script(capsys, subtests):
    assert len(SCRIPTS) >= 8
    for name in SCRIPTS:
        with subtests.test(name=name):
            assert importlib.import_module(name).main(["--overwrit3=1", "tile"]) == 2
            printed = capsys.readouterr()
            assert printed.err.startswith(f"{name}.py: no option --overwrit3")
            assert printed.err.count("\n") == 1
            assert printed.out == ""


def test_numbers_of_options():
    args = {"--a": "2", "--b": "0", "--c": "x", "--d": "1,2.5", "--e": None}
    assert number(args, "--a", int) == 2
    assert number(args, "--b", zero=True) == 0
    assert number(args, "--e") is numbers(args, "--e") is None
    assert numbers(args, "--d") == [1, 2.5]
    for option, kind, said in (
        ("--b", float, "a number above 0, got `0`"),
        ("--c", int, "whole number above 0, got `x`"),
    ):
        with pytest.raises(ValueError, match=f"{option} is .*{said}"):
            number(args, option, kind)
    with pytest.raises(ValueError, match="--d takes whole numbers, got `1,2.5`"):
        numbers(args, "--d", int)


def test_what_is_counted_has_its_plural(capsys):
    found = [
        counted(n, what) for n, what in ((1, "image"), (0, "nucleus"), (1, "hot spot"), (2, "hot spot"), (3, "patch"))
    ]
    assert found == ["1 image", "0 nuclei", "1 hot spot", "2 hot spots", "3 patches"]
    assert first_names("abcd") == "a, b, c, ..."
    print_table([["", "score"], ["all", 0.5], ["b", 12]])
    assert capsys.readouterr().out == "       score\nall  0.50000\nb         12\n"


def test_without_the_environment_every_script_says_how_to_get_it(subtests):
    """Python without installed packages, as the system's is."""
    for name in SCRIPTS:
        with subtests.test(name=name):
            done = subprocess.run([sys.executable, "-S", f"{name}.py"], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 1
            assert done.stderr == (
                f"{name}.py: docopt is not installed for this Python; activate the environment: "
                ". .venv/bin/activate (./run_tile.sh makes it)\n"
            )


def test_a_package_that_is_missing_later_is_one_line_too(capsys):
    def work(args):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert run_command(TEXT, work, ["--check=a"]) == 1
    assert capsys.readouterr().err.startswith("thing.py: torch is not installed for this Python; activate")


def test_help_without_docstrings_and_errors_that_nobody_reads(tmp_path):
    shown = subprocess.run([sys.executable, "-OO", "run_infer.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.startswith("Segment and classify nuclei in images and whole slides.\n\nUsage:\n")
    code = "import sys, misc.cli; misc.cli.open_streams(); f = open(sys.argv[1], 'w'); print(f.fileno(), file=f)"
    # a shell closes what Python would open anew
    command = f'{sys.executable} -c "{code}" {tmp_path / "a"} 2>&- && {sys.executable} compute_stats.py --mmp 2>&-'
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert int((tmp_path / "a").read_text()) > 2


def test_run_books_start_under_any_shell_and_through_links(tmp_path, subtests):
    (tmp_path / "home" / ".ci").mkdir(parents=True)
    (tmp_path / "home" / "dataset" / "sample_tiles" / "imgs").mkdir(parents=True)
    (tmp_path / "home" / ".ci" / "setup.sh").write_text("setup_venv() { :; }\n")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$PWD $1"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    for name in ("run_tile.sh", "run_wsi.sh"):
        shutil.copy(ROOT / name, tmp_path / "home")
        (tmp_path / name).symlink_to(tmp_path / "home" / name)
        for shell in (["sh"], ["bash"], []):
            with subtests.test(name=name, shell=shell):
                command = [*shell, f"./{name}"]
                done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
                assert done.stdout == f"{tmp_path / 'home'} run_infer.py\n", done.stderr
    attributes = ["git", "check-attr", "eol", "run_tile.sh", ".ci/setup.sh"]
    told = subprocess.run(attributes, cwd=ROOT, capture_output=True, text=True).stdout
    assert told.count("eol: lf") == 2 or not (ROOT / ".git").exists()
