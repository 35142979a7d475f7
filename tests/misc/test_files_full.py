"""A disk that is full, whatever the library that writes makes of it; and what killed runs leave."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from misc.files import _remove_dead_parts, atomic_path, write_atomic

LIMIT_BYTES = 10_000


@pytest.fixture
def full_disk():
    """No file may grow beyond some kB, as on a disk that is full."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def save_png(path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    if not cv2.imwrite(str(path), noise):
        raise OSError("cannot write it")


def test_a_full_disk_is_named_with_the_file_whoever_writes(tmp_path, full_disk):
    writers = {
        "a.tar": lambda path: torch.save({"a": torch.zeros(100_000)}, path),
        "a.npy": lambda path: np.save(path, np.zeros(100_000)),
        "a.npz": lambda path: np.savez(path, np.zeros(100_000)),
        "a.png": save_png,
        "a.json": lambda path: path.write_bytes(bytes(100_000)),
    }
    for name, write in writers.items():
        with pytest.raises(OSError, match="File too large") as caught, atomic_path(tmp_path / name) as temporary:
            write(temporary)
        assert caught.value.filename == str(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_other_failures_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(ValueError, match="a defect"), atomic_path(tmp_path / "a.json"):
        raise ValueError("a defect")
    assert not list(tmp_path.iterdir())


def test_half_written_files_of_killed_scripts_go_with_the_next_one(tmp_path):
    code = (
        f"import sys, os, signal; sys.path.insert(0, {str(ROOT)!r})\n"
        "from misc.files import atomic_path\n"
        f"with atomic_path({str(tmp_path / 'a.tar')!r}) as part:\n"
        "    part.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    theirs = left.name.rpartition("-")[2]
    others = {f".b.{os.getpid()}-{theirs}", ".c.1-abcdef.part.tar", ".notes.part.txt"}  # alive, elsewhere, no such file
    for name in others:
        (tmp_path / name).write_text("x")
    _remove_dead_parts.cache_clear()
    write_atomic(tmp_path / "d.txt", "d")
    assert {path.name for path in tmp_path.iterdir()} == {*others, "d.txt"}
