"""Functions that run ahead of their reader: order, errors, killed workers."""

from __future__ import annotations

import functools
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from misc.formats import nuclei_table
from misc.formats.ahead import map_in_threads, map_in_workers
from misc.formats.csv_table import write_csv
from misc.formats.nuclei_table import NucleiTable
from misc.nuclei import Nuclei


def kill_first(flag: Path, number: int) -> int:
    """Kill the process that makes the file `flag`; otherwise return the number doubled."""
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return number * 2
    return os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [False, True])
def test_the_order_stays_and_few_items_are_taken_ahead(processes):
    taken = []

    def items():
        for item in range(5, -2, -1):
            taken.append(item)
            yield item

    results = map_in_workers(math.sqrt, items(), 2, ahead=3) if processes else map_in_threads(math.sqrt, items(), 2)
    assert next(results) == math.sqrt(5)
    assert taken == [5, 4, 3]
    assert [next(results) for _ in range(5)] == [math.sqrt(item) for item in range(4, -1, -1)]
    with pytest.raises(ValueError, match="math domain error"):
        next(results)


def test_p02_a_killed_worker_loses_nothing(tmp_path):
    function = functools.partial(kill_first, tmp_path / "killed")
    assert list(map_in_workers(function, range(9), 2, ahead=4)) == [2 * number for number in range(9)]
    assert (tmp_path / "killed").exists()


def test_workers_make_the_same_table(tmp_path, monkeypatch):
    monkeypatch.setattr(nuclei_table, "PIECE_NUCLEI", 7)
    monkeypatch.setattr(nuclei_table, "PIECES_BEFORE_WORKERS", 1)
    count = 40
    contours = [np.array([[0, 0], [0, i], [i, i]]) + i for i in range(1, count + 1)]
    nuclei = Nuclei.from_contours(
        np.arange(count), np.zeros((count, 2, 2)), np.arange(2 * count).reshape(-1, 2) / 3, contours
    )
    for workers in (False, True):
        table = NucleiTable(nuclei, {None: ("nucleus", (0, 0, 0))}, scale=2.0, mpp=0.25, workers=workers)
        assert write_csv(tmp_path / f"{workers}.csv", table) == count
    assert (tmp_path / "True.csv").read_bytes() == (tmp_path / "False.csv").read_bytes()
