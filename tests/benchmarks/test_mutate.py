"""Damaged files of every kind: a slice of what `benchmarks/mutate.py` tries."""

from __future__ import annotations

import random

from benchmarks.mutate import READ, REFUSED, run
from benchmarks.mutated_readers import READERS, write_whole_files
from benchmarks.mutations import mutate

COUNT = 63


def test_damaged_files_are_read_or_refused_in_one_line():
    tally = run(COUNT, seed=0, names=list(READERS), data=None, processes=1, keep=None)
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.counts.total() == COUNT
    assert {outcome for _, outcome in tally.counts} == {READ, REFUSED}


def test_the_same_number_gives_the_same_damage(tmp_path):
    whole = write_whole_files(tmp_path / "whole")["nuclei"][0]
    ways = [[mutate(whole, tmp_path / f"{k}.json", random.Random(n)) for n in range(20)] for k in "ab"]
    assert ways[0] == ways[1]
    assert len(set(ways[0])) > 4
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes() != whole.read_bytes()
