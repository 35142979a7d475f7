"""`run_train.py` from the command line's options to the files: tiny networks on tiny patches, both phases."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import torch

import run_train
from models.hovernet.checkpoint import build_model, load_checkpoint
from models.hovernet.train_step import proc_valid_step_output, valid_step
from run_utils import checkpoint_io, log_files
from run_utils.disk_full import SaveError
from run_utils.trainer import Trainer

ROOT = Path(run_train.__file__).parent
NR_TYPES = 3
CONFIG = '''
import hashlib
import os
import pathlib

from models.hovernet import opt
from models.hovernet.net_desc import create_model
from run_utils import distributed
from run_utils.callbacks.base import BaseCallbacks


class Digest(BaseCallbacks):
    """Write what each process' weights are."""

    def run(self, state, event):
        net = state.run_info["net"]["desc"]
        values = getattr(net, "module", net).state_dict().values()
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values))
        name = f"{{pathlib.Path(state.log_dir).name}}-{{state.curr_epoch}}-{{distributed.rank()}}"
        pathlib.Path({root!r}, "digest", name).write_text(digest.hexdigest())


class Config:
    def __init__(self):
        self.seed, self.logging, self.debug, self.type_classification = 3, True, False, True
        self.dataset_name, self.log_dir = "squares", {log_dir!r}
        self.train_dir_list, self.valid_dir_list = [{train!r}], [{valid!r}]
        self.meta = {{"mpp": 0.5}}
        self.shape_info = {{k: {{"input_shape": [128, 128], "mask_shape": [36, 36]}} for k in ("train", "valid")}}
        self.model_config = opt.get_config(3, "fast")
        phases, engines = self.model_config["phase_list"], self.model_config["run_engine"]
        for index, phase in enumerate(phases):
            net = phase["run_info"]["net"]
            net["desc"] = lambda freeze=index == 0: create_model("fast", nr_types=3, freeze=freeze, width=0.125)
            net["pretrained"] = None if index == 0 else -1
            phase["nr_epochs"], phase["batch_size"] = 2, {{"train": 2, "valid": 2}}
        callbacks = engines["train"]["callbacks"]
        callbacks[opt.Events.EPOCH_COMPLETED].append(Digest())
        callbacks[opt.Events.STEP_COMPLETED][-1].per_n_step = 1  # a checkpoint in the middle of an epoch too
        engines["train"]["nr_procs"] = engines["valid"]["nr_procs"] = 0
        {edit}
'''


def write_patches(folder: Path, count: int, types: int = NR_TYPES) -> None:
    """Dark squares, all of one type in a patch, on a bright noisy ground."""
    rng = np.random.default_rng(len(folder.name))
    folder.mkdir(parents=True)
    for index in range(count):
        patch = np.zeros((150, 150, 5), np.int16)
        patch[..., :3] = rng.integers(200, 255, (150, 150, 3))
        for nucleus, (y, x) in enumerate(rng.integers(20, 110, (8, 2)), 1):
            patch[y : y + 14, x : x + 14] = [90, 50, 120, nucleus, 1 + index % (types - 1)]
        np.save(folder / f"{folder.name}{index}_000.npy", patch)


def make_project(root: Path, nr_train: int = 3, log_dir: str = "logs", edit: str = "", types: int = NR_TYPES) -> Path:
    """Return a configuration file with its data."""
    if not (root / "train").exists():
        write_patches(root / "train", nr_train, types)
        write_patches(root / "valid", 3)
        (root / "digest").mkdir()
    path = root / f"config_{log_dir}.py"
    places = {"root": str(root), "train": str(root / "train"), "valid": str(root / "valid")}
    path.write_text(CONFIG.format(**places, log_dir=str(root / log_dir), edit=edit))
    return path


def run_here(config: Path, *options: str) -> None:
    """Run in this process, which has torch already; one thread, as in the processes that are started."""
    arguments = {
        "--gpu": "",
        "--resume": "--resume" in options,
        "--seed": None,
        "--view": None,
        "--config": str(config),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_train.main(arguments)
    finally:
        torch.set_num_threads(threads)


def start(command: list[str], **options) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, **pipes, **options)


def steps(log_dir: Path) -> list[list[str]]:
    with open(log_dir / "steps.csv", newline="") as handle:
        return list(csv.reader(handle))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with a run that nobody interrupted, in `logs`."""
    root = tmp_path_factory.mktemp("training")
    run_here(make_project(root))
    return root


def test_both_phases_leave_what_people_look_for(project):
    for phase, frozen in (("00", True), ("01", False)):
        folder = project / "logs" / phase
        names = {path.name for path in folder.iterdir()}
        assert {"net_epoch=2.tar", "net_best.tar", "stats.json", "steps.csv", "config.json"} <= names
        assert "net_epoch=1.tar" not in names  # neither last nor every tenth (P37)
        assert "net_step.tar" not in names  # its epoch was saved
        assert any(name.startswith("events.out.tfevents") for name in names)
        assert not any(name.endswith(".part.tar") for name in names)
        stats = json.loads((folder / "stats.json").read_text())
        assert list(stats) == ["1", "2"]
        assert {"train-overall_loss", "train-lr-net", "valid-np_dice", "valid-tp_dice_2", "valid-hv_mse"} <= set(
            stats["2"]
        )
        described = json.loads((folder / "config.json").read_text())
        assert described["nets"]["net"]["network"] == {"mode": "fast", "nr_types": 3, "width": 0.125, "freeze": frozen}
        assert described["nets"]["net"]["lr_scheduler"]["step_size"] == 25
        # three patches in batches of two: two steps an epoch
        assert [row[:2] for row in steps(folder)[1:]] == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]]


def test_checkpoint_says_what_it_is(project):
    checkpoint = load_checkpoint(project / "logs" / "01" / "net_best.tar")
    assert (checkpoint.mode, checkpoint.nr_types, checkpoint.width) == ("fast", NR_TYPES, 0.125)
    assert checkpoint.meta["mpp"] == 0.5
    assert checkpoint.meta["seed"] == 3
    assert checkpoint.meta["images"] == {
        "train": ["train0", "train1", "train2"],
        "valid": ["valid0", "valid1", "valid2"],
    }
    assert checkpoint.meta["best"]["metric"] == "valid-np_dice"
    assert checkpoint.meta["config"]["dataset_name"] == "squares"
    build_model(checkpoint)


def test_frozen_phase_leaves_the_units_of_the_encoder_alone(project):
    """The second phase starts from the first one's last weights, and trains all of them."""
    first, second = (load_checkpoint(project / "logs" / p / "net_epoch=2.tar").state_dict for p in ("00", "01"))
    torch.manual_seed(0)
    assert not torch.equal(first["d2.units.1.conv1.weight"], second["d2.units.1.conv1.weight"])
    optimizer = torch.load(project / "logs" / "00" / "net_epoch=2.tar", weights_only=True)["optimizer"]
    trained = set(optimizer["state"])
    names = [name for name in first if not name.endswith(("running_mean", "running_var", "tracked", "unpool_mat"))]
    frozen = {index for index, name in enumerate(names) if name.startswith(("d1.", "d2.", "d3."))}
    assert trained.isdisjoint(frozen)
    assert trained


def test_p36_another_runs_logs_are_never_erased(project):
    before = {path: path.stat().st_mtime_ns for path in (project / "logs").rglob("*")}
    with pytest.raises(ValueError, match=r"logs holds another run .*--resume, or name another log_dir"):
        run_here(project / "config_logs.py")
    assert {path: path.stat().st_mtime_ns for path in (project / "logs").rglob("*")} == before
    run_here(project / "config_logs.py", "--resume")  # complete: nothing left to do
    assert len(steps(project / "logs" / "01")) == 5


def wait_for_step(log_dir: Path, process: subprocess.Popen, count: int, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (log_dir / "steps.csv").is_file() and len((log_dir / "steps.csv").read_text().splitlines()) > count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError("the run made no step")


@pytest.mark.parametrize(("phase", "count"), [("00", 1), ("01", 2)])
def test_p36_kill_and_resume_gives_the_same_losses_step_for_step(project, phase, count):
    name = f"killed{phase}"
    config = make_project(project, log_dir=name)
    process = start(["run_train.py", f"--config={config}", "--gpu="], start_new_session=True)
    wait_for_step(project / name / phase, process, count)
    time.sleep(int.from_bytes(os.urandom(1)) / 1000)  # somewhere in the steps, the validation or the saving after it
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    run_here(config, "--resume")
    for folder in ("00", "01"):
        whole, resumed = project / "logs" / folder, project / name / folder
        assert steps(resumed) == steps(whole)
        assert (resumed / "stats.json").read_text() == (whole / "stats.json").read_text()
        ours, theirs = (load_checkpoint(path / "net_epoch=2.tar").state_dict for path in (resumed, whole))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def run_two_processes(config: Path, *options: str) -> str:
    """Run under torchrun, on the CPU; returns what was printed."""
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    process = start([*command, "run_train.py", f"--config={config}", "--gpu=", *options], start_new_session=True)
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        raise
    assert process.returncode == 0, errors[-3000:]
    return output


# each process has a disk of its own, as on two machines: only the first sees what was written
OWN_DISK = "self.log_dir += os.environ.get('RANK', '')"


@pytest.fixture(scope="module")
def shared(project) -> str:
    """What a run of two processes printed; its files are in `shared0`."""
    return run_two_processes(make_project(project, log_dir="shared", edit=OWN_DISK))


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


def test_two_processes_without_a_common_disk_take_a_run_up_alike(project, shared):
    config = make_project(project, log_dir="shared", edit=f"{OWN_DISK}; phases[1]['nr_epochs'] = 3")
    output = run_two_processes(config, "--resume")
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


def write_images(folder: Path) -> Path:
    """A folder for `valid_image_dir_list` with one image, `a.png`; returns its path."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(200, 255, (100, 90, 3)), np.zeros((100, 90), np.int32)
    for nucleus, (y, x) in enumerate(rng.integers(5, 70, (6, 2)), 1):
        image[y : y + 14, x : x + 14], label[y : y + 14, x : x + 14] = (120, 50, 90), nucleus
    for name in ("Images", "Labels"):
        (folder / name).mkdir(parents=True)
    cv2.imwrite(str(folder / "Images" / "a.png"), image.astype(np.uint8))
    scipy.io.savemat(folder / "Labels" / "a.mat", {"inst_map": label})
    return folder / "Images" / "a.png"


def test_p37_the_best_checkpoint_goes_by_pq_where_whole_images_are_given(tmp_path):
    write_images(tmp_path / "images")
    edit = f"self.valid_image_dir_list = [{str(tmp_path / 'images')!r}]; phases.pop(); phases[0]['nr_epochs'] = 3; "
    edit += "scorer = callbacks[opt.Events.EPOCH_COMPLETED][4]; scorer.per_n_epoch = 1"
    process = start(["run_train.py", f"--config={make_project(tmp_path, edit=edit)}", "--gpu="])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    stats = json.loads((tmp_path / "logs" / "stats.json").read_text())
    pq = [stats[epoch]["valid-img_pq"] for epoch in ("1", "2", "3")]
    best = load_checkpoint(tmp_path / "logs" / "net_best.tar").meta["best"]
    last_of_the_best = max(range(3), key=lambda index: (pq[index], index))
    assert best == {"metric": "valid-img_pq", "value": pq[last_of_the_best], "epoch": last_of_the_best + 1}


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


def test_numpy_paths_and_dates_in_meta_can_be_read_back(tmp_path):
    edit = "import datetime, numpy; self.meta = {'mpp': numpy.float64(0.25), 'made': datetime.date(2024, 5, 6)}; "
    edit += "self.meta['from'] = pathlib.Path('a'); phases[0]['run_info']['net']['optimizer'][1]['lr'] = "
    edit += "numpy.float64(1e-4); [phase.update(nr_epochs=1) for phase in phases]"
    config = make_project(tmp_path, nr_train=1, edit=edit)
    run_here(config)  # the second phase reads what the first one wrote
    run_here(config, "--resume")
    assert load_checkpoint(tmp_path / "logs" / "01" / "net_epoch=1.tar").meta["made"] == "2024-05-06"


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


@pytest.mark.parametrize("nr_train", [1, 2])
def test_few_patches_and_large_batches_train(tmp_path, nr_train):
    edit = "phases.pop(); phases[0]['nr_epochs'] = 1; phases[0]['batch_size'] = {'train': 16, 'valid': 1}"
    run_here(make_project(tmp_path, nr_train=nr_train, edit=edit))
    assert len(steps(tmp_path / "logs")) == 2  # a single phase has no folder of its own


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        ("self.train_dir_list = ['nowhere']", FileNotFoundError, "no such folder: nowhere"),
        ("self.valid_dir_list = [{digest!r}]", ValueError, "no .npy patches"),
        ("phases[0]['run_info']['net']['pretrained'] = 'ImageNet.tar'", FileNotFoundError, "ImageNet.tar; ways on"),
        ("phases[1]['batch_size'] = {'train': 0, 'valid': 1}", ValueError, "batch_size of `train`"),
        ("self.seed = -4", ValueError, "seed"),
        ("self.seed = '10'", ValueError, "a seed is a whole number"),
        ("del phases[1]['run_info']['net']['extra_info']['loss']['tp']", ValueError, "phase 1: .*branch `tp`"),
        ("phases[0]['run_info']['net']['extra_info']['msge_axis'] = 'x'", ValueError, "msge_axis must be one of"),
        ("phases[0]['run_info']['net']['extra_info']['amp'] = 'fp8'", ValueError, "amp must be one of"),
        ("self.meta = {'mpp': object()}", ValueError, r"meta in config.py\['mpp'\] is a builtins.object"),
        ("self.type_info_path = 'nowhere.json'", FileNotFoundError, "nowhere.json"),
        ("self.shape_info['valid']['mask_shape'] = [80, 80]", ValueError, "shape_info of `valid`"),
        ("self.valid_image_dir_list = [{images!r}]", ValueError, "a.png is empty"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, edit, error, message):
    write_images(tmp_path / "images").write_bytes(b"")
    edit = edit.format(digest=str(tmp_path / "digest"), images=str(tmp_path / "images")) if "!r" in edit else edit
    config = make_project(tmp_path, nr_train=1, edit=edit)
    with pytest.raises(error, match=message) as caught:
        run_here(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "logs").exists()


def test_a_type_above_nr_type_is_one_line_on_the_command_line(tmp_path):
    config = make_project(tmp_path, nr_train=4, types=5)
    process = start(["run_train.py", f"--config={config}", "--gpu="])
    _, errors = process.communicate(timeout=60)
    last = errors.strip().splitlines()[-1]
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "has type id" in last
    assert "nr_type = 3 in config.py allows 0 to 2" in last


def test_view_writes_a_picture(project, tmp_path):
    arguments = {"--seed": "5", "--view": "train", "--view_path": str(tmp_path / "a" / "view.png")}
    run_train.main({**arguments, "--config": str(project / "config_logs.py"), "--gpu": None, "--resume": False})
    picture = cv2.imread(str(tmp_path / "a" / "view.png"))
    assert picture.std() > 10
    with pytest.raises(ValueError, match="--view takes train or valid"):
        run_train.main({**arguments, "--view": "test", "--config": "config.py", "--gpu": None, "--resume": False})


def test_p41_loaders_can_be_sent_to_spawned_workers(project):
    manager = run_train.load_manager(project / "config_logs.py")()
    trainer = Trainer(manager, [torch.device("cpu")])
    trainer.prepare()
    dataset = trainer._loader("train", manager.model_config["phase_list"][0], {"nr_procs": 0}, 7).dataset
    ours, sent = dataset[(3, 1, 0)], pickle.loads(pickle.dumps(dataset))[(3, 1, 0)]
    assert all(np.array_equal(ours[name], sent[name]) for name in ours)


def test_help_needs_no_torch():
    code = "import sys, run_train; print('torch' in sys.modules, 'cv2' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == ["False", "False"]


def test_options_that_make_no_sense_are_named(tmp_path):
    arguments = {"--gpu": None, "--resume": False, "--seed": None, "--view": None, "--config": "config.py"}
    with pytest.raises(ValueError, match="--seed takes a whole number, got `x`"):
        run_train.main({**arguments, "--seed": "x"})
    with pytest.raises(FileNotFoundError, match="no such configuration"):
        run_train.main({**arguments, "--config": str(tmp_path / "c.py")})
    (tmp_path / "c.py").write_text("x = 1")
    with pytest.raises(ValueError, match="no class Config"):
        run_train.main({**arguments, "--config": str(tmp_path / "c.py")})
