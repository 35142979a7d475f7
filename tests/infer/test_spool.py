"""The spool: what is in it is trusted, what is damaged is done again, what is not ours stays."""

from __future__ import annotations

import pytest

from infer.spool import Spool, SpoolError


def test_p05_p15_removing_a_spool_leaves_everything_else(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.txt").write_text("the user's")
    one, other = (Spool(tmp_path / "cache", "a", {}, owner=name) for name in ("x", "y"))
    other.write(0, [])
    one.write(0, [])
    one.remove()
    assert other.rows() == {0: 0}
    other.remove()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a.txt"]


def test_what_a_killed_run_was_writing_is_no_finished_row(tmp_path):
    spool = Spool(tmp_path / "cache", "a", {})
    spool.write(0, [])
    (spool.folder / ".000001.123.part.npz").write_bytes(b"half")
    assert spool.rows() == {0: 0}
    spool = Spool(tmp_path / "cache", "a", {})
    assert [path.name for path in spool.folder.iterdir()] == ["000000.npz"]


def test_other_options_do_not_take_up_what_is_spooled_and_remove_it(tmp_path):
    """Of another slide, or for another output folder, spools stay: somebody may be at work on them."""
    root = tmp_path / "cache"
    others = [Spool(root, name, {"tile": 128}, owner) for name, owner in (("a.b", "x"), ("a", "y"), ("A", "x"))]
    old = Spool(root, "a", {"tile": 128}, "x")
    for spool in (*others, old):
        spool.write(0, [])
    (root / f"{old.folder.name}.txt").write_text("the user's")
    assert Spool(root, "a", {"tile": 128}, "x").rows() == {0: 0}
    assert Spool(root, "a", {"tile": 256}, "x").rows() == {}
    assert not old.folder.exists()
    assert all(spool.rows() == {0: 0} for spool in others)
    assert (root / f"{old.folder.name}.txt").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_row_that_cannot_be_read_is_removed(tmp_path, caplog, damage):
    spool = Spool(tmp_path / "cache", "a", {})
    for row in range(3):
        spool.write(row, [])
    path = spool.folder / "000001.npz"
    path.write_bytes({"cut": path.read_bytes()[:-200], "empty": b"", "other": b"not a row of tiles"}[damage])
    assert spool.rows() == {0: 0, 2: 0}
    assert not path.exists()
    assert str(path) in caplog.text
    with pytest.raises(SpoolError, match="000001.npz cannot be read"):
        spool.read(1)


def test_an_empty_spool_is_not_left_behind(tmp_path):
    with Spool(tmp_path / "cache", "a", {}):
        pass
    assert not (tmp_path / "cache").exists()
    with Spool(tmp_path / "cache", "a", {}) as spool:
        spool.write(0, [])
    assert spool.rows() == {0: 0}


def test_our_own_cache_folder_goes_with_the_last_spool_whoever_made_it(tmp_path):
    """Two runs at once, or one that was killed: the folder was there before the one that ends last."""
    one, other = (Spool(tmp_path / ".cache", name, {}, is_ours=True) for name in "ab")
    one.remove()
    assert other.folder.exists()
    other.remove()
    assert not (tmp_path / ".cache").exists()
