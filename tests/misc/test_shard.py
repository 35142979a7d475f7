"""Shards of a cohort: each slide is one job's, and what the jobs found is joined with nothing missed."""

from __future__ import annotations

import csv
import os

import pytest

from misc.shard import Shard, join_parts
from misc.summary import Row, Summary


def test_every_slide_is_one_shards(subtests):
    for slides in (0, 1, 7, 24):
        for count in (1, 2, 7, 30):
            with subtests.test(slides=slides, count=count):
                shares = [Shard.parse(f"{index}/{count}").of(range(slides)) for index in range(count)]
                assert sorted(slide for share in shares for slide in share) == list(range(slides))
                assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("8/8", "counts from 0 to 7 .*--array=0-7"), ("0/0", "counts from 0"), ("-1/8", "takes i/n"), ("3", "takes i/n")],
)
def test_what_is_no_shard_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        Shard.parse(text)


def shard_of(folder, index, count, *rows, results=True):
    part = Summary(Shard(index, count).part(folder))
    part.path.parent.mkdir(parents=True, exist_ok=True)
    part.expect({row.slide: {"site": "north"} for row in rows})
    for row in rows:
        if row.status != "waiting":
            part.put(row, extra={"site": "north"})
        if row.status == "done" and results:
            (folder / "json").mkdir(exist_ok=True)
            (folder / "json" / f"{row.slide.removesuffix('.svs')}.json").write_text("{}")
    return part.path


def lines_of(folder):
    with open(folder / "summary.csv", newline="") as handle:
        return {line["slide"]: line for line in csv.DictReader(handle)}


def test_what_lacks_results_is_named(tmp_path):
    shard_of(tmp_path, 0, 4, Row("a.svs", "done", nuclei=5), Row("b.1.svs", "failed", "is broken"))
    shard_of(tmp_path, 1, 4, Row("c.svs", "done", nuclei=6), Row("d.svs", "waiting"))
    shard_of(tmp_path, 3, 4)  # fewer slides than shards
    joined = join_parts(tmp_path)
    assert (joined.done, joined.nuclei) == (["a.svs", "c.svs"], 11)
    assert joined.failed.keys() == {"b.1.svs", "d.svs", "--shard=2/4"}
    assert joined.failed["b.1.svs"] == "is broken"
    assert "not done yet" in joined.failed["d.svs"]
    assert {line["site"] for line in lines_of(tmp_path).values()} == {"north"}
    (tmp_path / "json" / "c.json").unlink()
    shard_of(tmp_path, 2, 4)
    assert join_parts(tmp_path).failed.keys() == {"b.1.svs", "c.svs", "d.svs"}


def test_a_shard_that_found_everything_there_keeps_what_was_measured(tmp_path):
    shard_of(tmp_path, 0, 1, Row("a.svs", "done", nuclei=5, seconds=9))
    join_parts(tmp_path)
    again = shard_of(tmp_path, 0, 2, Row("a.svs", "skipped", "its results are there", nuclei=5))
    shard_of(tmp_path, 1, 2)
    os.utime(again, ns=(1, 1))  # older than the other number of shards, as by another machine's clock
    joined = join_parts(tmp_path)
    assert (joined.done, joined.failed) == (["a.svs"], {})
    assert (lines_of(tmp_path)["a.svs"]["status"], lines_of(tmp_path)["a.svs"]["seconds"]) == ("done", "9")


def test_nothing_to_join_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="--shard"):
        join_parts(tmp_path)
