"""Nothing in a log folder is erased: two runs at once, results without a checkpoint, edits that a resume cannot follow.

Recipes, data and the ways to run are those of `training_runs.py`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_runs as runs

import run_train
from misc.locks import locked
from run_utils import log_folder
from run_utils.describe import describe_config, differences
from run_utils.log_folder import LOCK, find_moment, held

ONE_PHASE = "phases.pop(); "
NET = "net = phases[0]['run_info']['net']; "
MORE = "phases[0]['nr_epochs'] = 3; "


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(config: Path, message: str, *options: str) -> None:
    """The run stops with one line, and its log folder is what it was."""
    before = content(config.parent / "logs")
    with pytest.raises(ValueError, match=message) as caught:
        runs.run_here(config, *options)
    assert "\n" not in str(caught.value)
    assert content(config.parent / "logs") == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a run of one phase, two epochs."""
    root = tmp_path_factory.mktemp("finished")
    runs.run_here(runs.make_project(root, nr_train=1, edit=ONE_PHASE))
    return root


def test_a_resume_refuses_edits_of_optimizer_and_schedule(finished, subtests):
    cases = [
        ("net['optimizer'][1]['lr'] = 0.5", r"optimizer.options.lr: 0.0001 -> 0.5\): undo the edit"),
        ("net['optimizer'][1]['weight_decay'] = 0.1", "weight_decay: None -> 0.1"),
        ("net['optimizer'] = [opt.optim.AdamW, net['optimizer'][1]]", "adam.Adam -> torch.optim.adamw.AdamW"),
        ("net['lr_scheduler'] = lambda o: opt.optim.lr_scheduler.StepLR(o, 7)", "step_size: 25 -> 7"),
    ]
    for edit, message in cases:
        with subtests.test(edit=edit, message=message):
            config = runs.make_project(finished, edit=ONE_PHASE + MORE + NET + edit)
            refused(config, f"a resume goes on with .*net_epoch=2.tar.*{message}", "--resume")


def test_a_resume_follows_other_edits(tmp_path, capsys):
    """More epochs and another loss: the new column of steps.csv is empty in the lines before."""
    loss = "net['extra_info']['loss']['np']"
    runs.run_here(runs.make_project(tmp_path, nr_train=1, edit=f"{ONE_PHASE}{NET}del {loss}['bce']"))
    runs.run_here(runs.make_project(tmp_path, edit=f"{ONE_PHASE}{MORE}{NET}del {loss}['dice']"), "--resume")
    assert "changed since that checkpoint: nr_epochs: 2 -> 3" in capsys.readouterr().out
    header, *rows = runs.steps(tmp_path / "logs")
    filled = [[bool(row[header.index(f"loss_np_{term}")]) for term in ("dice", "bce")] for row in rows]
    assert filled == [[True, False], [True, False], [False, True]]
    assert all(len(row) == len(header) for row in rows)


def test_the_functions_of_a_schedule_are_described():
    def scheduled(warmup: int) -> dict:
        net = torch.nn.Linear(1, 1)
        recipe = {"optimizer": [torch.optim.SGD, {}], "pretrained": None}
        optimizer = torch.optim.SGD(net.parameters(), lr=1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / warmup)
        nets = {"net": {"desc": net, "lr_scheduler": schedule, "extra_info": {}}}
        phase = {"batch_size": {}, "nr_epochs": 1, "target_info": {}, "run_info": {"net": recipe}}
        config = type("Config", (), {"model_config": {"run_engine": {}}})()
        return json.loads(json.dumps(describe_config(config, phase, nets)))

    (line,) = differences(scheduled(3), scheduled(5))
    assert "'warmup': 3" in line.split(" -> ")[0]
    assert "'warmup': 5" in line.split(" -> ")[1]


def test_a_resume_without_a_checkpoint_overwrites_no_results(tmp_path):
    config = runs.make_project(tmp_path, nr_train=1, edit=ONE_PHASE)
    runs.run_here(config)
    two = runs.make_project(tmp_path)  # now in logs/00 and logs/01
    refused(two, "logs holds net_best.tar, net_epoch=2.tar, stats.json, but no checkpoint that this", "--resume")
    config = runs.make_project(tmp_path, edit=ONE_PHASE)
    (tmp_path / "logs" / "net_epoch=2.tar").unlink()
    refused(config, "logs holds net_best.tar, stats.json, but no checkpoint", "--resume")
    (tmp_path / "logs" / "net_best.tar").unlink()
    refused(config, "logs holds stats.json, but no checkpoint", "--resume")


@pytest.mark.parametrize("folders", [["."], ["00", "01"]])
def test_results_of_more_or_fewer_phases_are_seen(tmp_path, folders):
    left = tmp_path / ("01" if folders == ["."] else "02")
    left.mkdir()
    (left / "net_best.tar").touch()
    with pytest.raises(ValueError, match="net_best.tar, but no checkpoint"):
        find_moment(tmp_path, [tmp_path / name for name in folders], resume=True, writes=True)


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path_factory, subtests):
    cases = [
        {},
        {"stats.json": "{}", ".net_step.77.part.tar": ""},
        {"stats.json": '{"1": {"a": 1}}', "net_best.tar": "", ".net_epoch=1.77.part.tar": ""},
    ]
    for left in cases:
        with subtests.test(left=left):
            tmp_path = tmp_path_factory.mktemp("case")
            for name, text in left.items():
                (tmp_path / name).write_text(text)
            index, moment = find_moment(tmp_path, [tmp_path], resume=True, writes=True)
            assert (index, moment.path) == (0, None)


def test_a_phase_by_itself_looks_at_its_folder_too(tmp_path):
    config = runs.make_project(tmp_path, nr_train=1)
    manager = run_train.load_manager(config)()
    recipe = manager.model_config
    results = tmp_path / "logs" / "stats.json"
    results.parent.mkdir()
    results.write_text('{"1": {}}')
    with pytest.raises(ValueError, match="holds another run"):
        manager.run_once(recipe["phase_list"][0], recipe["run_engine"], results.parent)
    assert results.read_text() == '{"1": {}}'


@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_the_folder_of_a_living_run_is_left_alone(tmp_path, monkeypatch, options):
    monkeypatch.setattr(log_folder, "_PATIENCE_S", 0)
    config = runs.make_project(tmp_path, nr_train=1, edit=ONE_PHASE)
    (tmp_path / "logs").mkdir()
    with locked(tmp_path / "logs" / LOCK) as free:
        assert free
        if options:
            (tmp_path / "logs" / ".net_epoch=1.77.part.tar").touch()  # what it is writing
        refused(config, "another run is at work in .*logs", *options)


def test_the_lock_ends_with_its_process_and_leaves_nothing(tmp_path):
    code = f"""
from pathlib import Path
from run_utils.log_folder import held
with held(Path({str(tmp_path / "logs")!r}), True):
    print("held", flush=True)
    input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": runs.ROOT}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "logs" / LOCK).exists()
    assert find_moment(tmp_path / "logs", [tmp_path / "logs"], resume=False, writes=True)[0] == 0  # no result
    with held(tmp_path / "logs", True):
        pass
    assert not (tmp_path / "logs").exists()


def test_a_configuration_that_is_no_python_file_is_named(tmp_path):
    (tmp_path / "my.cfg").write_text("class Config: pass")
    with pytest.raises(ValueError, match=r"ends in .py; got .*my.cfg"):
        run_train.load_manager(tmp_path / "my.cfg")
