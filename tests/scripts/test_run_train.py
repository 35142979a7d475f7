"""`run_train.py` from the command line's options to the files: tiny networks on tiny patches, both phases."""

from __future__ import annotations

import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from training_runs import NR_TYPES, make_project, run_here, start, steps, write_images

import run_train
from models.hovernet.checkpoint import build_model, load_checkpoint
from run_utils.trainer import Trainer


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
    assert checkpoint.meta["best"]["metric"] == "mean of valid-np_dice and valid-tp_dice"
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


def test_p37_the_best_checkpoint_goes_by_pq_where_whole_images_are_given(tmp_path):
    write_images(tmp_path / "images")
    edit = f"self.valid_image_dir_list = [{str(tmp_path / 'images')!r}]; phases.pop(); phases[0]['nr_epochs'] = 3; "
    edit += "scorer = callbacks[opt.Events.EPOCH_COMPLETED][4]; scorer.per_n_epoch = 1"
    run_here(make_project(tmp_path, edit=edit))
    stats = json.loads((tmp_path / "logs" / "stats.json").read_text())
    # its label names no types; those of the patches count
    dice = [np.mean([epoch["valid-tp_dice_1"], epoch["valid-tp_dice_2"]]) for epoch in stats.values()]
    scores = [(epoch["valid-img_pq"] + types) / 2 for epoch, types in zip(stats.values(), dice, strict=True)]
    best = load_checkpoint(tmp_path / "logs" / "net_best.tar").meta["best"]
    last_of_the_best = max(range(3), key=lambda index: (scores[index], index))
    assert best["metric"] == "mean of valid-img_pq and valid-tp_dice"
    assert (best["value"], best["epoch"]) == (pytest.approx(scores[last_of_the_best]), last_of_the_best + 1)


def test_numpy_paths_and_dates_in_meta_can_be_read_back(tmp_path):
    edit = "import datetime, numpy; self.meta = {'mpp': numpy.float64(0.25), 'made': datetime.date(2024, 5, 6)}; "
    edit += "self.meta['from'] = pathlib.Path('a'); phases[0]['run_info']['net']['optimizer'][1]['lr'] = "
    edit += "numpy.float64(1e-4); [phase.update(nr_epochs=1) for phase in phases]"
    config = make_project(tmp_path, nr_train=1, edit=edit)
    run_here(config)  # the second phase reads what the first one wrote
    run_here(config, "--resume")
    assert load_checkpoint(tmp_path / "logs" / "01" / "net_epoch=1.tar").meta["made"] == "2024-05-06"


@pytest.mark.parametrize("nr_train", [1, 2])
def test_few_patches_and_large_batches_train(tmp_path, nr_train):
    edit = "phases.pop(); phases[0]['nr_epochs'] = 1; phases[0]['batch_size'] = {'train': 16, 'valid': 1}"
    run_here(make_project(tmp_path, nr_train=nr_train, edit=edit))
    assert len(steps(tmp_path / "logs")) == 2  # a single phase has no folder of its own


def test_mistakes_are_found_before_anything_is_written(tmp_path_factory, subtests):
    cases = [
        ("self.train_dir_list = ['nowhere']", FileNotFoundError, "no such folder: nowhere"),
        ("self.valid_dir_list = [{digest!r}]", ValueError, "no .npy patches"),
        ("phases[0]['run_info']['net']['pretrained'] = 'ImageNet.tar'", FileNotFoundError, "ImageNet.tar; what to do"),
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
    ]
    for edit, error, message in cases:
        with subtests.test(edit=edit, error=error, message=message):
            tmp_path = tmp_path_factory.mktemp("case")
            write_images(tmp_path / "images").write_bytes(b"")
            if "!r" in edit:
                edit = edit.format(digest=str(tmp_path / "digest"), images=str(tmp_path / "images"))
            config = make_project(tmp_path, nr_train=1, edit=edit)
            with pytest.raises(error, match=message) as caught:
                run_here(config)
            assert "\n" not in str(caught.value)
            assert not (tmp_path / "logs").exists()


def test_a_type_above_nr_type_is_named(tmp_path):
    with pytest.raises(ValueError, match="has type id .*nr_type = 3 in config.py allows 0 to 2"):
        run_here(make_project(tmp_path, nr_train=4, types=5))


def test_mistakes_are_one_line_on_the_command_line(warm):
    process = start(["run_train.py", "--config=nowhere.py", "--gpu="], warm)
    assert process.communicate() == ("", "run_train.py: no such configuration file: nowhere.py\n")
    assert process.returncode == 1


def test_view_writes_a_picture(project, tmp_path):
    arguments = {"--seed": "5", "--view": "train", "--view_path": str(tmp_path / "a" / "view.png")}
    run_train.run({**arguments, "--config": str(project / "config_logs.py"), "--gpu": None, "--resume": False})
    picture = cv2.imread(str(tmp_path / "a" / "view.png"))
    assert picture.std() > 10
    with pytest.raises(ValueError, match="--view takes train or valid"):
        run_train.run({**arguments, "--view": "test", "--config": "config.py", "--gpu": None, "--resume": False})


def test_p41_loaders_can_be_sent_to_spawned_workers(project):
    manager = run_train.load_manager(project / "config_logs.py")()
    trainer = Trainer(manager, [torch.device("cpu")])
    trainer.prepare()
    dataset = trainer._loader("train", manager.model_config["phase_list"][0], {"nr_procs": 0}, 7).dataset
    ours, sent = dataset[(3, 1, 0)], pickle.loads(pickle.dumps(dataset))[(3, 1, 0)]
    assert all(np.array_equal(ours[name], sent[name]) for name in ours)


def test_an_interrupted_training_says_how_to_go_on(project, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", interrupted)
    config = project / "config_logs.py"
    arguments = {"--gpu": "", "--resume": False, "--seed": "4", "--view": None, "--config": str(config)}
    with pytest.raises(
        KeyboardInterrupt, match=f"go on: python run_train.py --gpu= --seed=4 --config={config} --resume"
    ):
        run_train.run(arguments)


def test_options_that_make_no_sense_are_named(tmp_path):
    arguments = {"--gpu": None, "--resume": False, "--seed": None, "--view": None, "--config": "config.py"}
    with pytest.raises(ValueError, match="--seed is a whole number from 0 on, got `x`"):
        run_train.run({**arguments, "--seed": "x"})
    with pytest.raises(FileNotFoundError, match="no such configuration"):
        run_train.run({**arguments, "--config": str(tmp_path / "c.py")})
    (tmp_path / "c.py").write_text("x = 1")
    with pytest.raises(ValueError, match="no class Config"):
        run_train.run({**arguments, "--config": str(tmp_path / "c.py")})
