"""Training that is killed, shared out among processes, or meets a full disk, and is taken up again."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path

import pytest
import torch
from training_runs import NR_TYPES, make_project, run_here, start, steps
from warm_python import WarmPython

import run_train
from models.hovernet.checkpoint import build_model, load_checkpoint
from models.hovernet.train_step import proc_valid_step_output, valid_step
from run_utils import checkpoint_io, log_files
from run_utils.disk_full import SaveError
from run_utils.trainer import Trainer


def test_p36_killed_three_times_and_resumed_the_losses_are_the_same_step_for_step(project, warm):
    """After a step of the first phase, in the validation of the second, and while its last checkpoint is saved."""
    kills = (
        "callbacks[opt.Events.STEP_COMPLETED].append(KillAt('00', 0, 1))",
        "engines['valid']['callbacks'][opt.Events.STEP_COMPLETED].append(KillAt('01', 0, 1))",
        "kill_before_replacing('01/net_epoch=2.tar')",
    )
    for edit in kills:
        config = make_project(project, log_dir="killed", edit=edit)
        resume = ["--resume"] if (project / "killed").exists() else []
        process = start(["run_train.py", f"--config={config}", "--gpu=", *resume], warm)
        errors = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, (edit, errors[-3000:])
    run_here(make_project(project, log_dir="killed"), "--resume")
    for folder in ("00", "01"):
        whole, resumed = project / "logs" / folder, project / "killed" / folder
        assert steps(resumed) == steps(whole)
        assert (resumed / "stats.json").read_text() == (whole / "stats.json").read_text()
        ours, theirs = (load_checkpoint(path / "net_epoch=2.tar").state_dict for path in (resumed, whole))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def run_two_processes(warm: WarmPython, config: Path, *options: str) -> str:
    """Run under torchrun, on the CPU; returns what was printed."""
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    process = start([*command, "run_train.py", f"--config={config}", "--gpu=", *options], warm)
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return output


# each process has a disk of its own, as on two machines: only the first sees what was written
OWN_DISK = "self.log_dir += os.environ.get('RANK', '')"


@pytest.fixture(scope="module")
def shared(project, warm) -> str:
    """What a run of two processes printed; its files are in `shared0`."""
    return run_two_processes(warm, make_project(project, log_dir="shared", edit=OWN_DISK))


def same_weights_on_both_ranks(project: Path, name: str) -> bool:
    first, second = ((project / "digest" / f"{name}-{rank}").read_text() for rank in (0, 1))
    return first == second


def test_two_processes_share_the_work_and_one_writes(project, shared):
    assert shared.count("done:") == 1  # one process speaks
    assert not (project / "shared1").exists()
    log_dir = project / "shared0" / "01"
    # three patches in batches of at most two, two processes: one step an epoch, two patches and one
    assert [row[:2] for row in steps(log_dir)[1:]] == [["1", "1"], ["2", "1"]]
    assert all(same_weights_on_both_ranks(project, name) for name in ("00-1", "00-2", "01-1", "01-2"))
    # what validation says is what one process finds on all patches
    assert json.loads((log_dir / "stats.json").read_text())["2"] == {
        **json.loads((log_dir / "stats.json").read_text())["2"],
        **{f"valid-{k}": pytest.approx(v, rel=1e-4) for k, v in validate(project, log_dir / "net_epoch=2.tar").items()},
    }


def test_two_processes_without_a_common_disk_take_a_run_up_alike(project, shared, warm):
    config = make_project(project, log_dir="shared", edit=f"{OWN_DISK}; phases[1]['nr_epochs'] = 3")
    output = run_two_processes(warm, config, "--resume")
    assert output.count("resuming from") == 1
    assert not (project / "shared1").exists()
    assert [row[:2] for row in steps(project / "shared0" / "01")[1:]] == [["1", "1"], ["2", "1"], ["3", "1"]]
    assert same_weights_on_both_ranks(project, "01-3")


def validate(project: Path, checkpoint: Path) -> dict[str, float]:
    manager = run_train.load_manager(project / "config_logs.py")()
    trainer = Trainer(manager, [torch.device("cpu")])
    trainer.prepare()
    phase = manager.model_config["phase_list"][0]
    run = [{"net": {"desc": build_model(load_checkpoint(checkpoint)), "extra_info": {}}}, {"epoch": 0, "step": 99}]
    raw = {}
    for batch in trainer._loader("valid", phase, {"nr_procs": 0}, 0):
        for name, values in valid_step(batch, run)["raw"].items():
            raw.setdefault(name, []).extend(values)
    return proc_valid_step_output(raw, NR_TYPES)["scalar"]


@pytest.mark.parametrize("what", ["append_step", "write_atomic", "tensorboard"])
def test_a_disk_that_fills_up_is_one_line_with_the_file_and_the_last_checkpoint(tmp_path, monkeypatch, what):
    """From the first thing that is written after the first checkpoint on, nothing can be written."""
    from torch.utils.tensorboard import SummaryWriter

    def failing(function):
        def write(*arguments, **options):
            if (tmp_path / "logs" / "net_epoch=1.tar").exists():
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments, **options)

        return write

    place, name, file = {
        "append_step": (log_files.csv, "writer", "steps.csv"),
        "write_atomic": (log_files, "write_atomic", "stats.json"),
        "tensorboard": (SummaryWriter, "add_scalar", "TensorBoard's events beside .*stats.json"),
    }[what]
    monkeypatch.setattr(place, name, failing(getattr(place, name)))
    edit = "phases.pop(); callbacks[opt.Events.STEP_COMPLETED].pop()"
    pattern = rf"disk full while writing .*{file} \(.* MB free\); the last good checkpoint is .*net_epoch=1.tar"
    with pytest.raises(SaveError, match=pattern):
        run_here(make_project(tmp_path, nr_train=1, edit=edit))
    assert checkpoint_io.read_resume(tmp_path / "logs").epoch == 1


def test_what_a_killed_run_left_is_cleared_when_it_is_taken_up(tmp_path):
    config = make_project(tmp_path, nr_train=1, edit="phases.pop()")
    run_here(config)
    log_dir = tmp_path / "logs"
    # killed after the last checkpoint was whole, before what it replaces was removed, and while writing
    left = ("net_epoch=1.tar", ".net_epoch=2.77.part.tar", ".stats.77.part.json")
    for name in left:
        (log_dir / name).write_bytes((log_dir / "net_epoch=2.tar").read_bytes())
    run_here(config, "--resume")
    names = {path.name for path in log_dir.iterdir()}
    assert not names & set(left)
    assert "net_epoch=2.tar" in names


def test_a_run_killed_at_its_first_step_can_be_taken_up(tmp_path):
    config = make_project(tmp_path, nr_train=1, edit="phases.pop()")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "steps.csv").write_text("epoch,st")
    run_here(config, "--resume")
    assert [row[:2] for row in steps(tmp_path / "logs")] == [["epoch", "step"], ["1", "1"], ["2", "1"]]
