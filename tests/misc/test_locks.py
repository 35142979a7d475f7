"""The lock: two runs beside each other, dead runs, disks without locks."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

import misc.locks
from misc.locks import locked

HOLD = """
import sys
sys.path.insert(0, {root!r})
from misc.locks import locked
from pathlib import Path
with locked(Path({path!r})) as free:
    print(free, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    path = tmp_path / ".a.lock"
    code = HOLD.format(root=str(ROOT), path=str(path))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], **pipes)
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
    path, real, calls = tmp_path / ".a.lock", misc.locks._flock, []

    def slow(handle, lock_path, wait):
        if not calls:
            lock_path.unlink()  # what the other run does at its end
        calls.append(lock_path)
        return real(handle, lock_path, wait)

    monkeypatch.setattr(misc.locks, "_flock", slow)
    with locked(path) as free, locked(path) as third:
        assert free
        assert not third
    assert len(calls) == 3


def test_a_disk_without_locks_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    """Taken for "somebody else has it", every slide would be skipped, and the exit code would be 0."""

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(misc.locks.fcntl, "flock", none)
    with caplog.at_level(logging.WARNING), locked(tmp_path / ".a.lock") as free:
        assert free
    assert "no locks on this disk" in caplog.text


def test_who_waits_for_a_lock_gets_it(holder, monkeypatch):
    """The holder is killed at the moment that somebody asks to wait."""
    path, process = holder
    fcntl, asked = misc.locks.fcntl, []
    real = fcntl.flock

    def ask(handle, operation):
        asked.append(operation)
        process.kill()
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", ask)
    with locked(path, wait=True) as free:
        assert free
        assert process.wait() == -signal.SIGKILL
    assert asked == [fcntl.LOCK_EX]
