"""Training checkpoints: whole files or none, ours and upstream's."""

from __future__ import annotations

import datetime
import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from models.hovernet.net_desc import create_model
from run_utils import checkpoint_io
from run_utils.checkpoint_io import Resume, SaveError, read_resume, restore, save_checkpoint


def make_info(seed: int = 0, nr_types: int | None = 3, steps: int = 0) -> dict:
    """A network with an optimizer and a schedule that have made some steps."""
    torch.manual_seed(seed)
    net = create_model("fast", nr_types=nr_types, width=0.125)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    info = {"desc": net, "optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 25)}
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        info["lr_scheduler"].step()
    return info


def moment(epoch: int, epoch_step: int = 0) -> dict:
    return {"epoch": epoch, "epoch_step": epoch_step, "global_step": 0, "callbacks": {}}


def same(a: dict, b: dict) -> bool:
    theirs = b["desc"].state_dict()
    weights = all(torch.equal(value, theirs[name]) for name, value in a["desc"].state_dict().items())
    moments = zip(a["optimizer"].state.values(), b["optimizer"].state.values(), strict=True)
    return weights and all(torch.equal(x[key], y[key]) for x, y in moments for key in x)


def test_what_was_saved_comes_back(tmp_path):
    info = make_info(steps=2)
    save_checkpoint(tmp_path / "net_epoch=2.tar", info, {"mpp": 0.5}, moment(2))
    save_checkpoint(tmp_path / "net_epoch=10.tar", info, {}, moment(10))
    found = read_resume(tmp_path)
    assert (found.path.name, found.epoch, found.epoch_step) == ("net_epoch=10.tar", 10, 0)  # 10 > 2 as numbers
    other = make_info(seed=1)
    restore(other, found)
    assert same(info, other)
    assert other["lr_scheduler"].last_epoch == 2


def test_the_later_of_epoch_and_step_counts(tmp_path):
    info = make_info()
    save_checkpoint(tmp_path / "net_epoch=3.tar", info, {}, moment(3))
    save_checkpoint(tmp_path / "net_step.tar", info, {}, moment(2, 50))
    assert read_resume(tmp_path).epoch_step == 0
    save_checkpoint(tmp_path / "net_step.tar", info, {}, moment(3, 50))
    assert read_resume(tmp_path).epoch_step == 50


def test_nothing_saved_is_the_beginning(tmp_path):
    assert read_resume(tmp_path / "nowhere") == Resume()


def upstream_file(path, info: dict) -> None:
    """What upstream's PeriodicSaver writes: DataParallel's names, and the schedule before its step of the epoch."""
    weights = {f"module.{name}": value for name, value in info["desc"].state_dict().items()}
    parts = {"optimizer": info["optimizer"].state_dict(), "lr_scheduler": info["lr_scheduler"].state_dict()}
    torch.save({"desc": weights, **parts}, path)


def test_upstreams_checkpoint_is_taken_up(tmp_path):
    info = make_info(steps=24)
    upstream_file(tmp_path / "net_epoch=25.tar", info)
    found = read_resume(tmp_path)
    assert found.epoch == 25
    other = make_info(seed=1)
    restore(other, found)
    assert same(info, other)
    assert other["lr_scheduler"].last_epoch == 25
    assert other["optimizer"].param_groups[0]["lr"] == pytest.approx(1e-4)  # a tenth after 25 epochs


def test_ours_is_what_upstream_reads(tmp_path):
    """Upstream takes `desc`, strips `module.` if every name has it, and loads strictly."""
    info = make_info()
    info["desc"] = torch.nn.DataParallel(info["desc"])
    save_checkpoint(tmp_path / "net_epoch=1.tar", info, {"mpp": 0.5}, moment(1))
    content = torch.load(tmp_path / "net_epoch=1.tar", weights_only=True)
    assert list(content)[:3] == ["desc", "optimizer", "lr_scheduler"]
    create_model("fast", nr_types=3, width=0.125).load_state_dict(content["desc"], strict=True)


def test_another_network_is_refused_in_one_line(tmp_path):
    save_checkpoint(tmp_path / "net_epoch=1.tar", make_info(nr_types=3), {}, moment(1))
    with pytest.raises(ValueError, match="does not fit this configuration") as caught:
        restore(make_info(nr_types=5), read_resume(tmp_path))
    assert "\n" not in str(caught.value)


def test_meta_of_numpy_paths_and_dates_comes_back_as_plain_values(tmp_path):
    meta = {
        "mpp": np.float64(0.25),
        "sizes": [np.int64(3), np.array([1.5, 2.0])],
        "from": Path("/data") / "a",
        "made": datetime.date(2024, 5, 6),
        "whole": np.bool_(True),
        np.str_("name"): ("x", None),
    }
    save_checkpoint(tmp_path / "net_epoch=1.tar", make_info(), meta, moment(1))
    found = read_resume(tmp_path).content["meta"]
    plain = {"mpp": 0.25, "sizes": [3, [1.5, 2.0]], "from": os.path.join("/data", "a"), "made": "2024-05-06"}
    assert found == {**plain, "whole": True, "name": ("x", None)}
    assert type(found["mpp"]) is float


def test_a_learning_rate_of_numpy_comes_back(tmp_path):
    info = make_info()
    info["optimizer"] = torch.optim.SGD(info["desc"].parameters(), lr=np.float64(0.5))
    info["lr_scheduler"] = torch.optim.lr_scheduler.MultiStepLR(info["optimizer"], [3, 5], gamma=np.float32(0.5))
    save_checkpoint(tmp_path / "net_epoch=1.tar", info, {}, moment(1))
    other = make_info(seed=1)
    other["optimizer"] = torch.optim.SGD(other["desc"].parameters(), lr=0.1)
    other["lr_scheduler"] = torch.optim.lr_scheduler.MultiStepLR(other["optimizer"], [3, 5])
    restore(other, read_resume(tmp_path))
    assert other["optimizer"].param_groups[0]["lr"] == 0.5
    for _ in range(3):
        other["optimizer"].step()
        other["lr_scheduler"].step()
    assert other["optimizer"].param_groups[0]["lr"] == 0.25


def test_what_cannot_be_saved_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"meta\['a'\]\[1\] is a builtins.object, which no checkpoint can hold"):
        save_checkpoint(tmp_path / "net_epoch=1.tar", make_info(), {"a": [1, object()]}, moment(1))
    assert not list(tmp_path.iterdir())


def test_disk_full_keeps_the_last_good_checkpoint(tmp_path):
    """Files of this process are limited to less than a checkpoint, which fails as a full disk does."""
    resource = pytest.importorskip("resource")
    info = make_info()
    save_checkpoint(tmp_path / "net_epoch=1.tar", info, {}, moment(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for name in ("net_epoch=2.tar", "net_epoch=1.tar"):
            with pytest.raises(
                SaveError,
                match=r"could not save .*tar \(.* MB needed, .* MB free\); the last good .*net_epoch=1.tar.*--resume",
            ):
                save_checkpoint(tmp_path / name, info, {}, moment(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["net_epoch=1.tar"]
    assert read_resume(tmp_path).epoch == 1


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A disk of 4 MB, more than one checkpoint of `make_info` and less than two."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_is_called_so(small_disk):
    info = make_info()
    save_checkpoint(small_disk / "net_step.tar", info, {}, moment(2, 7))
    with pytest.raises(SaveError) as caught:
        save_checkpoint(small_disk / "net_epoch=3.tar", info, {}, moment(3))
    message = str(caught.value)
    assert message.startswith(f"could not save {small_disk / 'net_epoch=3.tar'} (disk full; ")
    assert "the last good checkpoint is " + str(small_disk / "net_step.tar") in message
    needed, free = (float(part.split()[0]) for part in message.split("disk full; ")[1].split(", ")[:2])
    assert 4 > needed > free > 0
    assert [path.name for path in small_disk.iterdir()] == ["net_step.tar"]
    assert read_resume(small_disk).epoch_step == 7


def test_the_error_of_a_full_disk_is_told_from_others(tmp_path, monkeypatch):
    def fail(error):
        def save(content, path):
            raise error

        return save

    for code, expected in ((errno.ENOSPC, "(disk full; "), (errno.EROFS, "Read-only file system; ")):
        monkeypatch.setattr(torch, "save", fail(OSError(code, os.strerror(code))))
        with pytest.raises(SaveError) as caught:
            save_checkpoint(tmp_path / "net_epoch=1.tar", make_info(), {}, moment(1))
        assert expected in str(caught.value)
        assert "none was saved yet" in str(caught.value)


def test_the_last_good_checkpoint_may_be_of_the_phase_before(tmp_path):
    for name in ("00", "01", "02"):
        (tmp_path / name).mkdir()
    save_checkpoint(tmp_path / "00" / "net_epoch=5.tar", make_info(), {}, moment(5))
    save_checkpoint(tmp_path / "02" / "net_epoch=1.tar", make_info(), {}, moment(1))
    assert str(tmp_path / "00" / "net_epoch=5.tar") in checkpoint_io.what_is_left(tmp_path / "01")


def test_what_a_kill_leaves_is_cleared_and_nothing_else(tmp_path):
    parts = (".net_epoch=3.77.part.tar", ".stats.77.part.json", ".config.77.part.json", ".steps.77.part.csv")
    others = ("net_epoch=2.tar", ".hidden.tar", "notes.part.tar", ".notes.77.part.json", "stats.json")
    for name in parts + others:
        (tmp_path / name).write_bytes(b"")
    checkpoint_io.remove_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_what_a_kill_between_saving_and_removing_leaves_is_cleared(tmp_path):
    names = ("net_epoch=2.tar", "net_epoch=3.tar", "net_step.tar", "net_best.tar")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    callbacks = {"saver": {"obsolete": ["net_epoch=2.tar", "net_step.tar"]}, "other": {}}
    by_epoch = Resume(tmp_path / "net_step.tar", content={"resume": {"callbacks": callbacks}})
    checkpoint_io.remove_obsolete(by_epoch)  # taken up from the file of a later step, which stays
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net_best.tar", "net_epoch=3.tar", "net_step.tar"]
    checkpoint_io.remove_obsolete(Resume(tmp_path / "net_epoch=3.tar", content=by_epoch.content))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net_best.tar", "net_epoch=3.tar"]
    checkpoint_io.remove_obsolete(Resume(tmp_path / "net_epoch=3.tar", content={"desc": {}}))  # upstream's


def test_a_whole_file_with_objects_in_it_is_not_called_damaged(tmp_path):
    torch.save({"desc": {}, "meta": {"mpp": np.float64(0.5)}}, tmp_path / "net_epoch=4.tar")
    with pytest.raises(ValueError, match=r"net_epoch=4.tar is whole, but holds Python objects .*numpy") as caught:
        read_resume(tmp_path)
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_or_bare_file_is_named(tmp_path):
    (tmp_path / "net_epoch=4.tar").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"net_epoch=4.tar is damaged"):
        read_resume(tmp_path)
    save_checkpoint(tmp_path / "net_epoch=4.tar", make_info(), {}, moment(4))
    (tmp_path / "net_epoch=4.tar").write_bytes((tmp_path / "net_epoch=4.tar").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"net_epoch=4.tar is damaged"):
        read_resume(tmp_path)
    torch.save({"desc": {}}, tmp_path / "net_epoch=4.tar")
    with pytest.raises(ValueError, match=r"lacks \['optimizer', 'lr_scheduler'\]"):
        read_resume(tmp_path)
