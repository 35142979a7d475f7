"""Training checkpoints: whole files or none, ours and upstream's."""

from __future__ import annotations

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
    weights = all(torch.equal(v, b["desc"].state_dict()[k]) for k, v in a["desc"].state_dict().items())
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
                SaveError, match=r"could not save .*the last good checkpoint is .*net_epoch=1.tar.*--resume"
            ):
                save_checkpoint(tmp_path / name, info, {}, moment(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["net_epoch=1.tar"]
    assert read_resume(tmp_path).epoch == 1


def test_what_a_kill_leaves_is_cleared_and_nothing_else(tmp_path):
    for name in (".net_epoch=3.77.part.tar", "net_epoch=2.tar", ".hidden.tar", "notes.part.tar"):
        (tmp_path / name).write_bytes(b"")
    checkpoint_io.remove_parts(tmp_path, "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden.tar", "net_epoch=2.tar", "notes.part.tar"]


def test_a_damaged_or_bare_file_is_named(tmp_path):
    (tmp_path / "net_epoch=4.tar").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"net_epoch=4.tar is damaged"):
        read_resume(tmp_path)
    torch.save({"desc": {}}, tmp_path / "net_epoch=4.tar")
    with pytest.raises(ValueError, match=r"lacks \['optimizer', 'lr_scheduler'\]"):
        read_resume(tmp_path)
