"""The spool and the lock: two runs beside each other, dead runs, disks without locks."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

import infer.spool
from infer.spool import Spool, locked

HOLD = """
import sys, time
sys.path.insert(0, {root!r})
from infer.spool import locked
from pathlib import Path
with locked(Path({path!r})) as free:
    print(free, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    path = tmp_path / ".a.lock"
    code = HOLD.format(root=str(ROOT), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "True"
    yield path, process
    process.kill()
    process.communicate()


def test_a_lock_is_held_by_one_and_ends_with_its_process(holder):
    path, process = holder
    with locked(path) as free:
        assert not free
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert path.exists()  # a dead run leaves its file, which says nothing
    with locked(path) as free:
        assert free
    assert not path.exists()


def test_a_lock_file_that_its_holder_removed_meanwhile_is_not_taken(tmp_path, monkeypatch):
    """Opened while another held it, locked after that one removed it: a third run would make, and lock, a new one."""
    path, real, calls = tmp_path / ".a.lock", infer.spool._flock, []

    def slow(handle, lock_path):
        if not calls:
            lock_path.unlink()  # what the other run does at its end
        calls.append(lock_path)
        return real(handle, lock_path)

    monkeypatch.setattr(infer.spool, "_flock", slow)
    with locked(path) as free, locked(path) as third:
        assert free
        assert not third
    assert len(calls) == 3


def test_a_disk_without_locks_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    """Taken for "somebody else has it", every slide would be skipped, and the exit code would be 0."""

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(infer.spool.fcntl, "flock", none)
    with caplog.at_level(logging.WARNING), locked(tmp_path / ".a.lock") as free:
        assert free
    assert "no locks on this disk" in caplog.text


def test_p05_p15_removing_a_spool_leaves_everything_else(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.txt").write_text("the user's")
    one, other = (Spool(tmp_path / "cache", "a", {"output_dir": name}) for name in ("x", "y"))
    other.write(0, [])
    one.write(0, [])
    one.remove()
    assert other.rows() == {0}
    other.remove()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a.txt"]


def test_what_a_killed_run_was_writing_is_no_finished_row(tmp_path):
    spool = Spool(tmp_path / "cache", "a", {})
    spool.write(0, [])
    (spool.folder / ".000001.123.part.npz").write_bytes(b"half")
    assert spool.rows() == {0}
