"""The spool: what is in it is trusted, what is damaged is done again, what is not ours stays."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import numpy as np
import pytest
from painted_blocks import ellipses, parts_of

from infer.grid import block_grid
from infer.segment import BlockNuclei
from infer.spool import Spool, SpoolError, remove_finished, spools
from misc.files import remove_if_empty

SHAPE = (90, 120)


@pytest.fixture(scope="module")
def parts() -> list[BlockNuclei]:
    """Nuclei of twelve blocks."""
    return parts_of(ellipses(SHAPE, seed=2), block_grid(SHAPE, 32, 8))


def spool_of(root: Path, name: str = "a", owner: str = "x", **fingerprint) -> Spool:
    return Spool.of(root, name, Path(owner), fingerprint)


def test_blocks_come_back_as_they_were(tmp_path, parts):
    spool = spool_of(tmp_path / "cache")
    for part in reversed(parts):
        spool.write(part)
    assert spool.blocks() == {index: int(part.owned.sum()) for index, part in enumerate(parts)}
    for index, part in enumerate(parts):
        found, arrays = spool.read(index), part.to_arrays()
        assert found.block == index
        assert found.to_arrays().keys() == arrays.keys()
        assert all(np.array_equal(array, arrays[name]) for name, array in found.to_arrays().items())


def test_p05_p15_removing_a_spool_leaves_everything_else(tmp_path, parts):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.txt").write_text("the user's")
    one, other = (spool_of(tmp_path / "cache", owner=name) for name in ("x", "y"))
    other.write(parts[0])
    one.write(parts[0])
    one.remove()
    assert other.blocks().keys() == {0}
    other.remove()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a.txt"]


def test_what_a_killed_run_was_writing_is_no_finished_block(tmp_path, parts):
    spool = spool_of(tmp_path / "cache")
    spool.write(parts[0])
    (spool.folder / ".000001.123.part.npz").write_bytes(b"half")
    assert spool.blocks().keys() == {0}
    spool = spool_of(tmp_path / "cache")
    assert [path.name for path in spool.folder.iterdir()] == ["000000.npz"]


def test_other_options_do_not_take_up_what_is_spooled_and_remove_it(tmp_path, parts):
    """Of another slide, or for another output folder, spools stay: somebody may be at work on them."""
    root = tmp_path / "cache"
    others = [spool_of(root, name, owner, tile=128) for name, owner in (("a.b", "x"), ("a", "y"), ("A", "x"))]
    old = spool_of(root, tile=128)
    for spool in (*others, old):
        spool.write(parts[0])
    (root / f"{old.folder.name}.txt").write_text("the user's")
    assert spool_of(root, tile=128).blocks().keys() == {0}
    assert spool_of(root, tile=256).blocks() == {}
    assert not old.folder.exists()
    assert all(spool.blocks().keys() == {0} for spool in others)
    assert (root / f"{old.folder.name}.txt").exists()


def test_spools_are_told_apart_by_all_that_the_nuclei_depend_on(tmp_path):
    """Names with the special characters of patterns, and of any length."""
    root = tmp_path / "cache"
    fingerprints = [{}, {"a": 1}, {"a": 1.5}, {"a": [1]}, {"a": Path("1")}, {"a": {"b": None}}]
    for name in ("a", "a[1].*", "ä" * 120, "a.b"):
        folders = {spool_of(root, name, owner, **f).folder for owner in "xy" for f in fingerprints}
        assert len(folders) == 2 * len(fingerprints)
        assert len(spools(root, name, "x")) == 1
    assert spool_of(root, b=1, a=2).folder == spool_of(root, a=2, b=1).folder


def test_a_block_that_cannot_be_read_is_removed(tmp_path, parts, caplog):
    spool = spool_of(tmp_path / "cache")
    for part in parts:
        spool.write(part)
    whole = (spool.folder / "000001.npz").read_bytes()
    other_version = {name: array for name, array in parts[1].to_arrays().items() if name != "cut"}
    np.savez(tmp_path / "other.npz", **other_version)
    damaged = [whole[:-200], whole[: len(whole) // 2], b"", b"not a block", (tmp_path / "other.npz").read_bytes()]
    damaged.append(whole[:300] + bytes(100) + whole[400:])
    for data in damaged:
        caplog.clear()
        path = spool.folder / "000001.npz"
        path.write_bytes(data)
        assert spool.blocks().keys() == set(range(len(parts))) - {1}
        assert not path.exists()
        assert str(path) in caplog.text
        with pytest.raises(SpoolError, match="000001.npz cannot be read"):
            spool.read(1)


def test_a_drive_that_is_away_for_a_moment_takes_nothing(tmp_path, parts, monkeypatch):
    spool = spool_of(tmp_path / "cache")
    spool.write(parts[0])

    def away(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", away)
        with pytest.raises(OSError, match=r"Input/output error.*000000.npz"):
            spool.blocks()
    assert spool.blocks().keys() == {0}


def test_p03_a_full_disk_names_the_file_and_leaves_nothing_half(tmp_path, parts, monkeypatch):
    spool = spool_of(tmp_path / "cache")

    def full(file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"No space left on device.*000003.npz"):
        spool.write(parts[3])
    assert not list(spool.folder.iterdir())


def test_the_cache_folder_goes_with_the_last_spool(tmp_path, parts):
    """Two runs at once, or one that was killed: the folder was there before the one that ends last."""
    one, other = (spool_of(tmp_path / ".cache", name) for name in "ab")
    one.remove()
    remove_if_empty(tmp_path / ".cache")
    assert other.folder.exists()
    other.remove()
    remove_if_empty(tmp_path / ".cache")
    assert not (tmp_path / ".cache").exists()


def test_a_cache_folder_that_another_run_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    """It was found, and is gone when a folder is to be made in it."""
    mkdir, removed = Path.mkdir, []

    def removing(self, *args, **kwargs):
        if not removed and self.suffix == ".spool":
            removed.append(self)
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))
        return mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", removing)
    assert spool_of(tmp_path / "cache").folder.is_dir()
    assert removed


def test_spools_that_were_complete_before_the_result_are_removed(tmp_path, parts):
    """Unless they are newer: of a run with `--overwrite` that is not done; or of another slide or folder."""
    root, result = tmp_path / "cache", tmp_path / "a.json"
    spool, others = spool_of(root), [spool_of(root, "b"), spool_of(root, "a", "y")]
    for each in (spool, *others):
        each.write(parts[0])
    result.touch()
    for seconds, there in ((-10, True), (10, False)):
        at = time.time_ns() + seconds * 10**9
        os.utime(result, ns=(at, at))
        remove_finished(root, "a", Path("x"), result)
        assert spool.folder.exists() == there
    assert all(each.folder.exists() for each in others)
