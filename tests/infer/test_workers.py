"""The worker pool: every piece of work comes back, whatever happens to its process."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import struct
import threading
from multiprocessing.connection import Connection

import pytest
from killer import Killer

from infer.workers import WorkerPool, limit_workers

PARENT = os.getpid()


def double(job):
    return 2 * job


def fail_on_three(job):
    if job == 3:
        raise ValueError("three is not liked")
    return job


def die_in_a_worker(job):
    """Job: (parent's pid, number). Number 2 kills its process, unless that is the parent."""
    parent, number = job
    if number == 2 and os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail_in_a_worker(job):
    parent, number = job
    if os.getpid() != parent:
        raise MemoryError("only here")
    return number


def large_result(job):
    """Larger than a pipe holds: a kill often meets a worker that is writing it."""
    return bytes([job % 256]) * (4 << 20)


def die_amid_the_result(job):
    """As `die_in_a_worker`, when half of the result has been written."""
    parent, number = job
    if number == 2 and os.getpid() != parent:

        def half(pipe, data):
            os.write(pipe.fileno(), struct.pack("!i", len(data)) + bytes(data[: len(data) // 2]))
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send_bytes = half
    return bytes(1000) if number == 2 else number


def unsendable(job):
    """Parent's pid: a worker makes what cannot be pickled."""
    return (lambda: 0) if os.getpid() != job else "made here"


def run(pool, jobs):
    outcomes = {}
    for number, job in enumerate(jobs):
        pool.submit(f"job {number}", job)
        outcomes.update((o.name, o) for o in pool.finished())
    outcomes.update((o.name, o) for o in pool.wait_all())
    pool.close()
    return outcomes


@pytest.mark.parametrize("nr_workers", [0, 1, 3])
@pytest.mark.parametrize("nr_jobs", [0, 1, 7])
def test_p10_any_number_of_jobs_and_workers(nr_workers, nr_jobs):
    outcomes = run(WorkerPool(double, nr_workers), range(nr_jobs))
    assert {name: o.value for name, o in outcomes.items()} == {f"job {n}": 2 * n for n in range(nr_jobs)}


@pytest.mark.parametrize("nr_workers", [0, 2])
def test_p02_a_failure_has_a_name_a_reason_and_a_traceback(nr_workers):
    outcomes = run(WorkerPool(fail_on_three, nr_workers), range(5))
    assert outcomes["job 3"].error == "ValueError: three is not liked"
    assert "fail_on_three" in outcomes["job 3"].details
    assert [outcomes[f"job {n}"].value for n in (0, 1, 2, 4)] == [0, 1, 2, 4]


def test_p02_a_failed_piece_is_done_again_in_this_process():
    outcomes = run(WorkerPool(fail_in_a_worker, 1), [(PARENT, 0), (PARENT, 1)])
    assert sorted(o.value for o in outcomes.values()) == [0, 1]


def test_p02_a_killed_worker_loses_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        outcomes = run(WorkerPool(die_in_a_worker, 2), [(PARENT, n) for n in range(8)])
    assert {o.value for o in outcomes.values()} == set(range(8))
    assert "was killed" in caplog.text


def run_in_time(pool, jobs, seconds: float) -> dict:
    """As `run`, but an endless wait is a failure of the test."""
    outcomes: dict = {}
    work = threading.Thread(target=lambda: outcomes.update(run(pool, jobs)), daemon=True)
    work.start()
    work.join(seconds)
    assert not work.is_alive(), "the pool waits for ever"
    return outcomes


def test_p02_a_worker_killed_amid_its_result_is_not_waited_for():
    """With one queue for all workers, its lock and its reader would have been stuck for ever."""
    outcomes = run_in_time(WorkerPool(die_amid_the_result, 2), [(PARENT, n) for n in range(8)], 20)
    assert outcomes.pop("job 2").value == bytes(1000)
    assert {o.value for o in outcomes.values()} == {0, 1, 3, 4, 5, 6, 7}


def test_p02_workers_killed_at_random_moments_lose_nothing():
    with Killer(seed=1, longest_s=0.4) as killer:
        jobs = itertools.takewhile(lambda n: n < 50 or killer.kills < 5, itertools.count())
        outcomes = run_in_time(WorkerPool(large_result, 3), jobs, 40)
    assert len(outcomes) >= 50
    assert all(outcomes[f"job {n}"].value == large_result(n) for n in range(len(outcomes)))


def test_p02_a_result_that_cannot_be_sent_is_made_here():
    outcomes = run(WorkerPool(unsendable, 1), [PARENT, PARENT])
    assert [o.value for o in outcomes.values()] == ["made here"] * 2


def test_queue_is_bounded():
    pool = WorkerPool(double, 1, queue=2)
    for job in range(6):
        pool.submit(str(job), job)
        assert len(pool) <= 2
    assert len(list(pool.wait_all())) == 6
    pool.close()


def test_worker_counts_are_limited_and_it_is_said(caplog, monkeypatch):
    monkeypatch.setattr("infer.workers.cpu_count", lambda: 2)
    with caplog.at_level(logging.INFO):
        assert limit_workers("--nr_post_proc_workers", 16, useful=100) == 2
    assert "--nr_post_proc_workers=16 -> 2" in caplog.text
    assert limit_workers("--x", 16, useful=1) == 1
    assert limit_workers("--x", 0, useful=5) == 0
    with pytest.raises(ValueError, match="0 or more"):
        limit_workers("--x", -1, useful=5)
