"""Cohorts as a table and in shards, as a user calls them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cohorts
import cv2
import numpy as np
import pytest
from cohorts import FIRST, nuclei_of, write_slide
from conftest import ROOT

import run_infer


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return cohorts.save_network(tmp_path_factory.mktemp("weights") / "net.tar")


def call(weights, out, *wsi):
    return run_infer.main([*FIRST, f"--model_path={weights}", "wsi", f"--output_dir={out}", *wsi])


def lines_of(out):
    with open(out / "summary.csv", newline="", encoding="utf-8") as handle:
        return {line["slide"]: line for line in csv.DictReader(handle)}


def test_a_table_says_how_each_slide_is_read(weights, tmp_path, capsys):
    """Pixel size, mask and regions are the slide's own; other columns are carried; what is not there is named."""
    write_slide(tmp_path / "plain.tif")
    write_slide(tmp_path / "silent.tif", mpp=None)
    write_slide(tmp_path / "masked.tif")
    write_slide(tmp_path / "region.tif")
    left = np.zeros((40, 41), np.uint8)
    left[:, :6] = 255  # glass
    cv2.imwrite(str(tmp_path / "left.png"), left)
    ring = [[0, 0], [82, 0], [82, 159], [0, 159], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "half.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    (tmp_path / "cohort.csv").write_text(
        "path,mpp,mask,regions,patient\nplain.tif,,,,p1\nsilent.tif,0.5,,,p2\nmasked.tif,,left.png,,p3\n"
        "region.tif,,,half.geojson,p4\ngone.svs,,,,p5\n"
    )
    assert call(weights, tmp_path / "out", f"--slides={tmp_path / 'cohort.csv'}") == 1
    assert "failed: gone: " in capsys.readouterr().err
    lines = lines_of(tmp_path / "out")
    assert {name: line["patient"] for name, line in lines.items()} == {
        "plain.tif": "p1",
        "silent.tif": "p2",
        "masked.tif": "p3",
        "region.tif": "p4",
        "gone.svs": "p5",
    }
    assert {name for name, line in lines.items() if line["status"] == "failed"} == {"gone.svs"}
    found = {name: len(nuclei) for name, nuclei in nuclei_of(tmp_path / "out").items()}
    assert found["plain"] == found["silent"] > 5
    shares = {name: float(line["tissue_share"] or 0) for name, line in lines.items()}
    assert shares["masked.tif"] == pytest.approx(6 / 41, abs=1e-4)
    assert shares["region.tif"] == pytest.approx(shares["plain.tif"] / 2, rel=0.15)


def test_slides_by_uri_are_fetched_and_removed(weights, tmp_path):
    write_slide(tmp_path / "there" / "a.tif")
    scratch = tmp_path / "scratch"
    (tmp_path / "cohort.csv").write_text(f"path\nfile://{tmp_path}/there/a.tif\nfile://{tmp_path}/gone.tif\n")
    (tmp_path / "there" / "cohort.csv").write_text("path\na.tif\n")
    for out, table in (("plain", "there/cohort.csv"), ("fetched", "cohort.csv")):
        code = call(weights, tmp_path / out, f"--slides={tmp_path / table}", f"--scratch={scratch}")
        assert code == (out == "fetched")
    assert nuclei_of(tmp_path / "fetched") == nuclei_of(tmp_path / "plain")
    assert "gone.tif" in lines_of(tmp_path / "fetched")["gone.tif"]["reason"]
    assert not list(scratch.iterdir())
    assert (tmp_path / "there" / "a.tif").exists()


def test_shards_joined_are_one_run(weights, tmp_path, capsys):
    for number in range(3):
        write_slide(tmp_path / "in" / f"{number}.tif", number)
    (tmp_path / "in" / "broken.svs").write_bytes(b"nothing of a slide")
    one, shards = tmp_path / "one", tmp_path / "shards"
    assert call(weights, one, f"--input_dir={tmp_path / 'in'}") == 1
    assert run_infer.main(["merge", f"--output_dir={shards}"]) == 1
    assert "--shard" in capsys.readouterr().err.splitlines()[-1]
    codes = []
    for index in range(2):
        if index:
            assert run_infer.main(["merge", f"--output_dir={shards}"]) == 1
            assert "failed: --shard=1/2: has written nothing" in capsys.readouterr().err
        codes.append(call(weights, shards, f"--input_dir={tmp_path / 'in'}", f"--shard={index}/2"))
    assert sorted(codes) == [0, 1]
    assert run_infer.main(["merge", f"--output_dir={shards}"]) == 1
    said = capsys.readouterr()
    assert "in 3 slides, 1 failed or missing" in said.out.splitlines()[-1]
    assert said.err.splitlines()[-1].startswith("run_infer.py: failed: broken.svs: ")
    assert nuclei_of(shards) == nuclei_of(one)
    of_time = {"seconds": ""}
    assert {n: {**x, **of_time} for n, x in lines_of(shards).items()} == {
        n: {**x, **of_time} for n, x in lines_of(one).items()
    }


def test_wrong_ways_to_name_a_cohort_are_one_line(weights, tmp_path, capsys):
    write_slide(tmp_path / "in" / "a.tif")
    for wsi, said in [
        ([], "--input_dir=<path> or --slides=<csv> is missing"),
        ([f"--input_dir={tmp_path / 'in'}", "--slides=a.csv"], "--slides"),
        ([f"--slides={tmp_path / 'no.csv'}"], "no such table"),
        ([f"--input_dir={tmp_path / 'in'}", "--shard=8/8"], "i counts from 0 to 7"),
    ]:
        assert call(weights, tmp_path / "out", *wsi) in (1, 2)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("run_infer.py: ")
        assert said in error
        assert not (tmp_path / "out").exists()


def test_the_stages_of_a_shard_find_what_one_run_finds(weights, tmp_path, capsys):
    """Maps by `--stage=predict`, nuclei by `--stage=segment`, also where the first stage was for another machine."""
    write_slide(tmp_path / "in" / "a.tif")
    where, out = f"--input_dir={tmp_path / 'in'}", tmp_path / "out"
    assert call(weights, tmp_path / "one", where) == 0
    assert call(weights, out, where, "--stage=predict", "--shard=0/1") == 0
    assert "1 slide predicted, 0 skipped, 0 failed, maps in" in capsys.readouterr().out
    assert run_infer.main(["merge", f"--output_dir={out}"]) == 0
    assert "1 slide predicted" in capsys.readouterr().out
    assert not (out / "report.html").exists()
    manifest = out / "maps" / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"precision": "fp32"', '"precision": "tf32"'))
    assert call(weights, out, where, "--stage=segment") == 0
    assert "in 1 slide, 0 skipped, 0 failed" in capsys.readouterr().out
    assert (nuclei := nuclei_of(out)) == nuclei_of(tmp_path / "one")
    assert all(nuclei.values())
    assert json.loads((out / "json" / "a.json").read_text())["run"]["precision"] == "tf32"
    assert {line["status"] for line in lines_of(out).values()} == {"done"}
    assert call(weights, out, where, "--stage=both") == 1
    assert "--stage is predict or segment, got `both`" in capsys.readouterr().err


def test_results_are_moved_to_where_they_are_wanted(weights, tmp_path, capsys):
    """`--upload`: what is there is not done again, also by a run elsewhere; what cannot be sent stays and is named."""
    pytest.importorskip("fsspec", reason="pip install -r requirements-storage.txt")
    write_slide(tmp_path / "in" / "a.tif")
    where, out, there = f"--input_dir={tmp_path / 'in'}", tmp_path / "out", tmp_path / "there"
    there.mkdir()
    (there / "mask").write_text("a file where a folder is wanted")
    upload = f"--upload=file://{there}"
    assert call(weights, out, where, upload, "--save_mask") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be uploaded" in said
    assert str(out / "json" / "a.json") in said
    assert nuclei_of(out)["a"]
    (there / "mask").unlink()
    found = nuclei_of(out)
    assert call(weights, out, where, upload, "--save_mask", "--shard=0/1") == 0, "the network is not asked again"
    assert nuclei_of(there) == found
    assert not [path for kind in ("json", "mask") for path in (out / kind).iterdir()]
    assert (there / "mask" / "a.png").is_file()
    assert run_infer.main(["merge", f"--output_dir={out}"]) == 0
    assert lines_of(out)["a.tif"]["uploaded_to"] == f"file://{there}"
    assert call(weights, tmp_path / "other", where, upload) == 0
    assert "1 skipped" in capsys.readouterr().out
    assert call(weights, tmp_path / "other", where, upload, "--tile_shape=1000") == 1
    assert "made with other settings" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("snakemake"), reason="pip install snakemake, in an environment of its own")
def test_snakemake_joins_shares_of_which_one_failed(weights, tmp_path):
    """`contrib/Snakefile`, without a GPU; the slide that is broken is named, the other is done."""
    write_slide(tmp_path / "in" / "a.tif")
    (tmp_path / "in" / "broken.svs").write_bytes(b"nothing of a slide")
    (tmp_path / "cohort.csv").write_text("path\nin/a.tif\nin/broken.svs\n")
    says = {"slides": "cohort.csv", "output_dir": "results", "model": weights, "shards": 2, "gpu": ""}
    command = ["snakemake", "-s", str(ROOT / "contrib" / "Snakefile"), "--cores=1", "--config"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        command + [f"{name}={value}" for name, value in says.items()],
        **{"cwd": tmp_path, "env": os.environ | {"PATH": path}, "capture_output": True, "text": True},
    )
    assert "failed: broken.svs: " in ended.stderr, ended.stdout + ended.stderr
    lines = lines_of(tmp_path / "results")
    assert {name: line["status"] for name, line in lines.items()} == {"a.tif": "done", "broken.svs": "failed"}
    assert nuclei_of(tmp_path / "results")["a"]
