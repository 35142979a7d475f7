"""Slides handed out through Dask: on this machine, and in the jobs of a SLURM of one node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cohorts
import pytest
import slurm_node
from cohorts import FIRST, nuclei_of, write_slide
from conftest import ROOT

import run_infer
from misc.summary import read_lines

GOOD = 11
# Jobs of one processor; the rest is Dask's own.
JOBS = """jobqueue:
  slurm:
    cores: 1
    memory: 500MB
    walltime: "00:30:00"
    log-directory: {folder}/jobs
    local-directory: {folder}/local
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A folder with twelve tiny slides in `in`, one of which is broken, and in `one` what a single run finds."""
    folder = tmp_path_factory.mktemp("cohort")
    cohorts.save_network(folder / "net.tar")
    for number in range(GOOD):
        write_slide(folder / "in" / f"{number:02d}.tif", number)
    (folder / "in" / "broken.svs").write_bytes(b"nothing of a slide")
    assert run_infer.main(command(folder, "one")) == 1
    assert len(nuclei_of(folder / "one")) == GOOD
    return folder


def command(folder, out, *wsi):
    places = f"--input_dir={folder / 'in'}", f"--output_dir={folder / out}"
    return [*FIRST, f"--model_path={folder / 'net.tar'}", "wsi", *places, *wsi]


def test_local_workers_find_what_one_run_finds(cohort, capsys):
    pytest.importorskip("distributed", reason="pip install -r requirements-cluster.txt")
    table = cohort / "some.csv"
    table.write_text("path\nin/00.tif\nin/07.tif\nin/broken.svs\n")
    where = [f"--slides={table}", f"--output_dir={cohort / 'local'}", "--cluster=local", "--nr_workers=2"]
    assert run_infer.main([*FIRST, f"--model_path={cohort / 'net.tar'}", "wsi", *where]) == 1
    said = capsys.readouterr()
    assert "failed: broken.svs: " in said.err
    check_same(cohort, "local", ["00", "07"], said.out)


def test_a_scheduler_of_ones_own_serves_run_after_run(cohort, capsys):
    distributed = pytest.importorskip("distributed", reason="pip install -r requirements-cluster.txt")
    table = cohort / "two.csv"
    table.write_text("path\nin/00.tif\nin/07.tif\nin/broken.svs\n")
    how = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0", "resources": {"SLIDE": 1}}
    with distributed.LocalCluster(**how) as cluster:
        for out in ("first", "second"):
            where = [f"--slides={table}", f"--output_dir={cohort / out}", f"--cluster={cluster.scheduler_address}"]
            assert run_infer.main([*FIRST, f"--model_path={cohort / 'net.tar'}", "wsi", *where]) == 1
            check_same(cohort, out, ["00", "07"], capsys.readouterr().out)


def check_same(cohort, out, names, said):
    """What was found is what the single run found, the broken slide is named with its reason, and nothing is left."""
    one = nuclei_of(cohort / "one")
    assert nuclei_of(cohort / out) == {name: one[name] for name in names}
    lines, expected = read_lines(cohort / out / "summary.csv"), read_lines(cohort / "one" / "summary.csv")
    assert lines.keys() == {*(f"{name}.tif" for name in names), "broken.svs"}
    for slide, line in lines.items():
        assert [line[name] for name in ("status", "reason", "nuclei")] == [
            expected[slide][name] for name in ("status", "reason", "nuclei")
        ]
        assert (cohort / out / "logs" / f"{slide}.log").read_text()
    assert f"in {len(names)} slides, 1 failed or missing" in said
    assert sorted(path.name for path in (cohort / out).iterdir()) == ["json", "logs", "report.html", "summary.csv"]


def test_without_dask_the_line_says_what_to_install(cohort, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert run_infer.main(command(cohort, "bare", "--cluster=local")) == 1
    assert "pip install -r requirements-cluster.txt" in capsys.readouterr().err.splitlines()[-1]


def test_places_that_make_no_sense_are_one_line(cohort, capsys):
    for wsi, said in [
        (["--cluster=here"], "--cluster is local, slurm or tcp://host:port, got `here`"),
        (["--cluster=slurm"], "--nr_workers=<n>"),
        (["--cluster=local", "--nr_workers=0"], "--nr_workers is a whole number above 0"),
        (["--cluster=local", "--shard=0/2"], "--shard is for jobs"),
    ]:
        assert run_infer.main(command(cohort, "bad", *wsi)) == 1
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (cohort / "bad").exists()


# --------------------------------------------------------------------------------------------------------- SLURM


def processes(word: str) -> dict[int, int]:
    """Return the processes whose command line has a word in it, each with the process that started it."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word in (folder / "cmdline").read_text(errors="replace"):
                status = (folder / "status").read_text()
                found[int(folder.name)] = int(status.split("PPid:")[1].split()[0])
        except OSError:  # it has ended
            continue
    return found


def wait_for(event, run):
    """Return what `event` returns once it is something; the run must not end before."""
    while not (found := event()):
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    return found


@pytest.mark.skipif(bool(slurm_node.why_not()), reason=slurm_node.why_not() or "there is one")
def test_a_killed_worker_and_a_cancelled_job_cost_no_slide(cohort, tmp_path):
    """Eleven of twelve slides are done, the broken one is named; the results are those of a single run."""
    pytest.importorskip("dask_jobqueue", reason="pip install -r requirements-cluster.txt")
    (tmp_path / "jobqueue.yaml").write_text(JOBS.format(folder=tmp_path))
    out = cohort / "slurm"
    argv = [sys.executable, str(ROOT / "run_infer.py"), *command(cohort, "slurm", "--cluster=slurm", "--nr_workers=2")]
    with slurm_node.slurm(tmp_path / "slurm") as environment:
        environment |= {"DASK_CONFIG": str(tmp_path)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(argv, env=environment, **pipes) as run:
            try:
                slide = f"--slides={out / 'logs' / 'cohort.csv'}"
                worker = wait_for(lambda: list(processes(slide).values()), run)[0]
                os.kill(worker, signal.SIGKILL)
                wait_for(lambda: list((out / "json").glob("[0-9]*.json")), run)
                queue = ["squeue", "--noheader", "--states=RUNNING", "--format=%A"]
                ask = lambda: subprocess.run(queue, env=environment, **pipes).stdout.split()  # noqa: E731
                subprocess.run(["scancel", wait_for(ask, run)[0]], env=environment, check=True)
                said, errors = run.communicate()
            finally:
                run.kill()
        assert not ask(), "jobs are left in the queue"
    assert run.returncode == 1, errors
    assert "failed: broken.svs: " in errors.splitlines()[-1]
    check_same(cohort, "slurm", [f"{number:02d}" for number in range(GOOD)], said)


@pytest.mark.skipif(bool(slurm_node.why_not()), reason=slurm_node.why_not() or "there is one")
def test_an_array_of_jobs_is_joined(cohort, tmp_path, capsys):
    """`contrib/slurm_array.sh`: two jobs without a GPU share three slides, the first of which is broken."""
    table = cohort / "array.csv"
    table.write_text("path\nin/broken.svs\nin/00.tif\nin/07.tif\n")
    submit = ["sbatch", "--wait", "--mem=900", "--array=0-1", str(ROOT / "contrib" / "slurm_array.sh"), str(table)]
    with slurm_node.slurm(tmp_path / "slurm") as environment:
        environment |= {"HOVERNET": str(ROOT), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
        submit += [str(cohort / "array"), str(cohort / "net.tar")]
        ended = subprocess.run(submit, env=environment, cwd=tmp_path, capture_output=True, text=True)
    logs = "".join(path.read_text() for path in tmp_path.glob("hovernet-*.log"))
    assert ended.returncode == 1, logs + ended.stderr
    assert run_infer.main(["merge", f"--output_dir={cohort / 'array'}"]) == 1
    said = capsys.readouterr()
    assert "in 2 slides, 1 failed or missing" in said.out, logs
    assert said.err.startswith("run_infer.py: failed: broken.svs: ")
    one = nuclei_of(cohort / "one")
    assert nuclei_of(cohort / "array") == {name: one[name] for name in ("00", "07")}
