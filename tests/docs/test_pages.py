"""The pages that users read: their command blocks run, print what the page says, and name what exists."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from inputs import clone, write_inputs
from pages import PAGES, Block, begins, blocks, stale
from warm_python import WarmPython

from docs.make_options import PAGE, help_texts, options_page
from misc.usage import option_names

ENOUGH_S = 300  # no block comes near it; one that hangs ends there
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
RUN = [name for name, text in TEXTS.items() if any(block.not_run is None for block in blocks(text))]


@pytest.fixture(scope="module")
def inputs(shared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder, shared)
    return folder


def run(block: Block, folder: Path, warm: WarmPython) -> subprocess.CompletedProcess:
    shell = ["bash", "-euo", "pipefail", "-c", block.commands]
    return subprocess.run(
        shell, cwd=folder, env=warm.environ, capture_output=True, text=True, timeout=ENOUGH_S, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run_and_print_what_it_says(page, inputs, warm, tmp_path, subtests):
    """From top to bottom, in one folder that looks like a clone with the inputs in it."""
    clone(tmp_path, inputs)
    for block in blocks(TEXTS[page]):
        if block.not_run is None:
            with subtests.test(page=page, line=block.line):
                ended = run(block, tmp_path, warm)
                assert ended.returncode == 0, f"{block.commands}\n{ended.stdout}{ended.stderr}"
                assert block.prints is None or begins(ended.stdout, block.prints), f"{block.prints}\n{ended.stdout}"


def test_pages_name_only_scripts_and_options_that_exist(subtests):
    for page, text in TEXTS.items():
        with subtests.test(page=page):
            assert list(stale(text)) == []


def test_the_page_of_options_is_what_the_help_texts_say():
    assert PAGE.read_text(encoding="utf-8") == options_page(), "run `python docs/make_options.py`"
    for name, text in help_texts().items():
        section = options_page().partition(f"# {name}\n")[2].partition("\n## ")[0]
        for option, known in option_names(text).items():
            row = next(line for line in section.splitlines() if line.startswith("| `") and option in line.split("`")[1])
            if isinstance(known.value, str):
                assert f" | `{known.value}` | " in row, (name, option)


PAGE_OF_FAULTS = """
```bash
echo ten; echo 12 s; echo more
```

```text
ten
... s
```

<!-- not run:  -->
```sh
cd x && python run_infer.py --gpu=0 tile --input_dirs=a \\
    --mpp=1  # --remark
./run_all.sh && pip install -r requirements-none.txt
torchrun --nproc_per_node=4 run_train.py --gpu=0 --epochs=3
```

    text `python compute_stats.py --mode=type
    --truth_dir=a`, `--not_there`, `sbatch --array=0-7` and `python -m misc.sample a`

```
python none.py
```
"""


def test_the_checks_of_pages_find_what_they_look_for(tmp_path, warm):
    run_block, other = blocks(PAGE_OF_FAULTS)
    assert (run_block.line, run_block.not_run, other.not_run) == (2, None, "")
    printed = run(run_block, tmp_path, warm).stdout
    assert begins(printed, run_block.prints)
    assert begins(printed, "...\nmore")
    assert not begins(printed, "ten\n12 min")
    assert not begins(printed, "12 s")
    assert begins("1,203 nuclei,  0 failed, mean 0.5", "7 nuclei, 0 failed, mean 1.25")
    assert not begins("7 nuclei, 1 failed", "7 nuclei, 0 failed")
    assert run(Block(1, "python missing.py; true", None, None), tmp_path, warm).returncode != 0
    assert list(stale(PAGE_OF_FAULTS)) == [
        "line 22: a fence says no language",
        "line 12: is not run, and no reason is given",
        "run_infer.py has no --input_dirs",
        "there is no ./run_all.sh",
        "there is no requirements-none.txt",
        "run_train.py has no --epochs",
        "compute_stats.py has no --truth_dir",
        "no script has --not_there",
    ]
