"""The worker pool: every piece of work comes back, whatever happens to its process."""

from __future__ import annotations

import logging
import os
import signal

import pytest

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
