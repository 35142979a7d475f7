"""Slides on many machines, or on many GPUs of one: Dask hands them out, one by one.

The scheduler knows nothing of slides or networks. Each worker keeps one process of `run_infer.py`, which takes one
slide after the other. There are two reasons: a killed process affects only its slide, and Dask's workers are daemons,
which must not start the pools of processes that a slide needs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from misc.extras import require
from misc.files import remove_if_empty, short_stem
from misc.shard import ASKED, ENDED, Joined, Shard, join_parts
from misc.slides.cohort import CohortSlide, write_cohort
from misc.summary import Row, Summary, read_lines

logger = logging.getLogger(__name__)

LOCAL, SLURM = "local", "slurm"
EXTRA = "cluster"
# Each worker has one, and each slide takes one: a worker does one slide at a time, however many processors it has.
RESOURCE = "SLIDE"
# A failed slide is tried once more, since the reason may be gone: a lost disk, a GPU full of another user's data.
RETRIES = 1
LOGS_DIR = "logs"
# Bytes at the end of a log that are searched for its last line.
_TAIL_BYTES = 2000


def check_where(where: str, nr_workers: int | None) -> None:
    """Check `--cluster` and `--nr_workers`.

    Raises:
        ValueError: the place is unknown, or the number of jobs is missing.
    """
    if where not in (LOCAL, SLURM) and "://" not in where:
        raise ValueError(f"--cluster is local, slurm or tcp://host:port, got `{where}`")
    if where == SLURM and nr_workers is None:
        raise ValueError("--cluster=slurm needs --nr_workers=<n>, the number of jobs")


def run_cohort(
    slides: Sequence[CohortSlide], command: list[str], output_dir: Path, where: str, nr_workers: int, gpus: list[str]
) -> Joined:
    """Run a command for each slide, and join the results into `summary.csv`.

    Args:
        slides: the slides to do.
        command: `run_infer.py wsi` with its options, without those that choose slides.
        output_dir: the same as in `command`.
        where: `local`, `slurm`, or the address of a scheduler.
        nr_workers: slides at once; a running scheduler has its own workers.
        gpus: each local worker takes one; empty where `command` names them.
    """
    table = output_dir / LOGS_DIR / "cohort.csv"
    write_cohort(table, slides)
    shards = {slide.path.name: Shard(index, len(slides)) for index, slide in enumerate(slides)}
    command = [*command, f"--slides={table.resolve()}", f"--shard={ASKED}"]
    failed = 0
    try:
        with (
            tqdm(total=len(slides), unit="slide", desc="Slides") as bar,
            logging_redirect_tqdm(),
            contextlib.closing(_run(command, shards, table.parent, where, nr_workers, gpus)) as ended,
        ):
            for name, reason in ended:
                part = shards[name].part(output_dir)
                line = read_lines(part).get(name, {})
                if reason and line.get("status") != "failed":
                    _put(part, Row(name, reason=reason), line)
                if reason:
                    failed += 1
                    logger.error("%s: %s", name, line.get("reason") if line.get("status") == "failed" else reason)
                bar.set_postfix(failed=failed)
                bar.update()
    finally:
        joined = _join(output_dir, [shard.part(output_dir) for shard in shards.values()])
    return joined


def _put(part: Path, row: Row, line: Mapping[str, str]) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    own = vars(row)
    Summary(part).put(row, extra={name: value for name, value in line.items() if name not in own})


def _join(output_dir: Path, parts: Sequence[Path]) -> Joined:
    """Join the lines of the slides, which are many small files, and remove these."""
    if not any(part.exists() for part in parts):
        return Joined()
    joined = join_parts(output_dir)
    for part in parts:
        part.unlink(missing_ok=True)
    remove_if_empty(parts[0].parent)
    return joined


def _run(
    command: list[str], shards: Mapping[str, Shard], logs: Path, where: str, nr_workers: int, gpus: list[str]
) -> Iterator[tuple[str, str]]:
    """Run a command for shards by name; yield the name of each when it ends, and its error, if any."""
    distributed = require("distributed", EXTRA)
    logging.getLogger("distributed").setLevel(logging.WARNING)  # it logs every connection
    with _cluster(where, nr_workers) as address, distributed.Client(address) as client:
        _check_workers(client, where)
        options: dict[str, Any] = {"resources": {RESOURCE: 1}, "retries": RETRIES, "pure": False}
        log_of, run_shard = {name: logs / f"{short_stem(name)}.log" for name in shards}, _runner(gpus)
        futures = {
            client.submit(run_shard, command, str(shard), str(log_of[name].resolve()), os.getcwd(), **options): name
            for name, shard in shards.items()
        }
        try:
            for future in distributed.as_completed(list(futures)):
                name = futures.pop(future)
                yield name, _reason(future, log_of[name])
        finally:
            client.cancel(list(futures))
            if where not in (LOCAL, SLURM):  # these workers stay; their processes end when they get no more requests
                client.run(lambda dask_worker: hasattr(dask_worker, "shards") and dask_worker.shards.stdin.close())


@contextlib.contextmanager
def _cluster(where: str, nr_workers: int) -> Iterator[Any]:
    """Start workers; yield the address for a client; stop them at the end, queued jobs included."""
    if where == LOCAL:
        how = {"n_workers": nr_workers, "threads_per_worker": 1, "memory_limit": None, "dashboard_address": ":0"}
        how |= {"silence_logs": logging.CRITICAL}  # its workers repeat each error
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers hear no Ctrl-C; this process ends them
        try:
            cluster = require("distributed", EXTRA).LocalCluster(**how, resources={RESOURCE: 1})
        finally:
            signal.signal(signal.SIGINT, heard)
        with cluster:
            yield cluster
    elif where == SLURM:
        arguments = require("dask", EXTRA).config.get("jobqueue.slurm.worker-extra-args", None) or []
        arguments = [*arguments, "--resources", f"{RESOURCE}=1"]
        jobs = require("dask_jobqueue", EXTRA)
        with jobs.SLURMCluster(processes=1, worker_extra_args=arguments) as cluster:
            cluster.adapt(minimum_jobs=nr_workers, maximum_jobs=nr_workers)  # `scale` never replaces a lost job
            yield cluster
    else:
        yield where


def _check_workers(client: Any, where: str) -> None:
    """Warn where the workers of somebody else's scheduler cannot take a slide."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if where not in (LOCAL, SLURM) and not any(RESOURCE in worker["resources"] for worker in workers):
        logger.warning("%s: no worker has --resources %s=1; slides wait until one that has it comes", where, RESOURCE)


def _reason(future: Any, log: Path) -> str:
    """Return why a command failed, or an empty text; its last line is in its log."""
    if future.status == "finished":
        return ""
    error = future.exception() if future.status == "error" else future.status
    if type(error).__name__ == "KilledWorker":
        return "each worker that tried it was killed (memory?)"
    said = ""
    if log.is_file():
        with open(log, "rb") as handle:
            handle.seek(max(log.stat().st_size - _TAIL_BYTES, 0))
            said = (handle.read().decode(errors="replace").splitlines() or [""])[-1]
    return " ".join(f"{error}{': ' if said else ''}{said}".split())


def _runner(gpus: list[str]) -> Callable[[list[str], str, str, str], None]:
    """Return the function that does a shard in a worker; its output is appended to a log.

    A worker keeps one process with the network loaded. It starts another after a failed slide, which may have left a
    GPU in a bad state. Dask pickles an inner function by value: workers need Python and Dask, but not this package on
    their path.
    """
    pattern = re.escape(ENDED).replace(r"\{shard\}", "{shard}").replace(r"\{code\}", r"(\d+)")

    def run_shard(command: list[str], shard: str, log: str, folder: str) -> None:
        import contextlib
        import re
        import shutil
        import subprocess

        from distributed import get_worker

        def end(child: subprocess.Popen) -> bytes:
            """Close the input of a process, upon which it ends; return what it still says."""
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            said = child.stdout.read()  # not `communicate`, which fails where the input is closed already
            child.wait()
            return said

        worker = get_worker()
        if gpus:  # local workers are called 0, 1, ...
            own = f"--gpu={gpus[int(worker.name) % len(gpus)]}"
            command = [own if word.startswith("--gpu=") else word for word in command]
        if shutil.which("setpriv"):  # Linux: the process ends with its worker, and releases the slide's lock
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        child = getattr(worker, "shards", None)
        if child is None or child.stdin.closed or child.poll() is not None or child.args != command:
            if child is not None:
                end(child)  # of an earlier run
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            child = worker.shards = subprocess.Popen(command, cwd=folder, **pipes)
        code, ended = None, re.compile(pattern.format(shard=shard).encode())
        with open(log, "ab", buffering=0) as out:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and logged why
                child.stdin.write(f"{shard}\n".encode())
                child.stdin.flush()
            while code is None and (line := child.stdout.readline()):
                found = ended.search(line)
                code = int(found[1]) if found else None
                out.write(line[: found.start()] if found else line)
        if code == 0:
            return
        del worker.shards
        with open(log, "ab") as out:
            out.write(end(child))
        code = child.returncode or 1 if code is None else code  # so that Dask tries it again
        raise RuntimeError(f"its process was killed (signal {-code})" if code < 0 else f"it ended with {code}")

    return run_shard
