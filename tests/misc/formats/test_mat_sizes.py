"""Label files that unpack to more than they say, or than there is memory for."""

from __future__ import annotations

import struct
import zlib

import h5py
import numpy as np
import pytest
import scipy.io

from misc.formats.labels import read_label
from misc.machine import TooLargeError

INST = np.arange(12, dtype=np.int32).reshape(3, 4)


def write_mat(path, shape, nr_bytes):
    """Write a `.mat` whose variable has a shape, and so many bytes of numbers, compressed."""
    flags = struct.pack("<IIII", 6, 8, 6, 0)
    dims = struct.pack("<IIii", 5, 8, *shape)
    name = struct.pack("<II", 1, 8) + b"inst_map"
    body = flags + dims + name + struct.pack("<II", 9, nr_bytes) + bytes(nr_bytes)
    packed = zlib.compress(struct.pack("<II", 14, len(body)) + body)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
    path.write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)


def test_what_unpacks_to_more_than_it_declares_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.mat"
    write_mat(path, (3, 4), 12 * 8)
    assert read_label(path)["inst_map"].shape == (3, 4)
    write_mat(path, (3, 4), 1 << 20)
    monkeypatch.setattr(scipy.io, "loadmat", None)
    monkeypatch.setattr(scipy.io, "whosmat", None)
    with pytest.raises(TooLargeError, match="unpacks to more than the 192 bytes"):
        read_label(path)
    write_mat(path, (1 << 20, 1 << 20), 8)
    with pytest.raises(TooLargeError, match="what it declares: .* GB of memory are needed, .* GB are free"):
        read_label(path)


def test_cells_which_do_not_say_how_large_they_are_are_not_read(tmp_path):
    cells = np.empty((1, 1), object)
    cells[0, 0] = np.zeros((300, 300))
    scipy.io.savemat(tmp_path / "a.mat", {"inst_map": INST, "cells": cells, "name": "x"}, do_compression=True)
    content = read_label(tmp_path / "a.mat")
    assert content.keys() == {"inst_map", "name"}
    assert np.array_equal(content["inst_map"], INST)


def test_a_chunk_of_hdf5_larger_than_the_array_counts(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        side = 1 << 16
        file.create_dataset("inst_map", data=INST, maxshape=(None, None), chunks=(1, 4))
        file.create_dataset("type_map", shape=INST.shape, dtype="f8", maxshape=(None, None), chunks=(side, side // 16))
    with open(tmp_path / "a.mat", "rb+") as out:
        out.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    monkeypatch.setattr("misc.machine.available_memory", lambda: 1 << 30)
    with pytest.raises(TooLargeError, match="what it declares"):
        read_label(tmp_path / "a.mat")
