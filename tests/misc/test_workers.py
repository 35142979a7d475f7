"""The worker pool: every piece of work comes back, whatever happens to its process."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from killer import Killer
from worker_jobs import (
    Work,
    add_up,
    add_up_or_die,
    die_amid_the_result,
    die_in_a_worker,
    double,
    fail_in_a_worker,
    fail_on_three,
    large_result,
    mapped,
    unsendable,
)

import misc.workers
from misc.workers import Outcome, SharedArray, WorkerPool, limit_workers

PARENT = os.getpid()
ENOUGH_S = 120  # no test comes near it; one that hangs ends there


@pytest.fixture(autouse=True)
def spawned(monkeypatch):
    """Here workers start as those of users do."""
    monkeypatch.setattr(misc.workers, "CONTEXT", multiprocessing.get_context("spawn"))


def run(pool, jobs):
    """Do all jobs; returns their outcomes by key."""
    count = 0
    for number, job in enumerate(jobs):
        pool.submit(f"job {number}", job, number)
        count += 1
    outcomes = dict(pool.outcomes.get(timeout=ENOUGH_S) for _ in range(count))
    pool.close()
    assert pool.outcomes.empty()
    assert all(outcome.name == f"job {number}" for number, outcome in outcomes.items())
    return outcomes


def values(outcomes) -> list:
    return [outcomes[number].value for number in sorted(outcomes)]


def test_p10_any_number_of_jobs_and_workers():
    for nr_workers in [0, 1, 3]:
        for nr_jobs in (0, 1, 7):
            outcomes = run(WorkerPool(nr_workers), [Work(double, (n,)) for n in range(nr_jobs)])
            assert values(outcomes) == [2 * n for n in range(nr_jobs)]


def test_p02_a_failure_has_a_name_a_reason_and_a_traceback():
    for nr_workers in [0, 2]:
        outcomes = run(WorkerPool(nr_workers), [Work(fail_on_three, (n,)) for n in range(5)])
        assert outcomes[3].error == "ValueError: three is not liked"
        assert "fail_on_three" in outcomes[3].details
        assert [outcomes[n].value for n in (0, 1, 2, 4)] == [0, 1, 2, 4]


def test_of_an_expected_failure_the_message_says_all():
    error = OSError("the disk\nis full")
    assert Outcome.of("a", error, (OSError,)) == Outcome("a", error="the disk is full")
    unexpected = Outcome.of("a", error, (ValueError,))
    assert unexpected.error == "OSError: the disk\nis full"
    assert "OSError" in unexpected.details


def test_p02_a_failed_piece_is_done_again_in_this_process():
    assert values(run(WorkerPool(1), [Work(fail_in_a_worker, (PARENT, n)) for n in range(2)])) == [0, 1]


def test_p02_a_killed_worker_loses_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        outcomes = run(WorkerPool(2), [Work(die_in_a_worker, (PARENT, n)) for n in range(8)])
    assert values(outcomes) == list(range(8))
    assert "was killed" in caplog.text


def test_p02_a_worker_killed_while_it_is_idle_is_replaced():
    pool, pids = WorkerPool(1), []
    for _ in range(3):
        pool.submit("job", Work(os.getpid, ()))
        pids.append(pool.outcomes.get(timeout=ENOUGH_S)[1].value)
        for worker in pool._idle[len(pids) - 1 :]:
            worker.process.kill()
            worker.process.join()
    pool.close()
    assert pids[1] == PARENT  # it took the place of the one that was killed
    assert len(set(pids)) == 3


def test_p02_a_worker_killed_amid_its_result_is_not_waited_for():
    """With one queue for all workers, its lock and its reader would have been stuck for ever."""
    outcomes = run(WorkerPool(2), [Work(die_amid_the_result, (PARENT, n)) for n in range(8)])
    assert values(outcomes) == [0, 1, bytes(1000), 3, 4, 5, 6, 7]


def test_p02_workers_killed_at_random_moments_lose_nothing():
    with Killer(seed=1, longest_s=0.4) as killer:
        numbers = itertools.takewhile(lambda n: n < 50 or killer.kills < 5, itertools.count())
        outcomes = run(WorkerPool(3), (Work(large_result, (n,)) for n in numbers))
    assert len(outcomes) >= 50
    assert all(outcomes[n].value == large_result(n) for n in outcomes)


def test_p02_a_result_that_cannot_be_sent_is_made_here():
    assert values(run(WorkerPool(1), [Work(unsendable, (PARENT,))] * 2)) == ["made here"] * 2


def test_p02_a_job_that_cannot_be_sent_is_done_here():
    jobs = [Work(double, (1,)), Work(lambda: os.getpid(), ()), Work(double, (2,))]
    assert values(run(WorkerPool(1), jobs)) == [2, PARENT, 4]


@pytest.mark.parametrize(("nr_workers", "limit", "expected"), [(1, 2, 2), (1, None, 2), (2, None, 4), (3, 3, 3)])
def test_no_more_jobs_are_under_way_than_allowed(monkeypatch, nr_workers, limit, expected):
    """Jobs are kept from ending: the one beyond the limit is not taken, and is once one of them may end."""
    may_end, lock, taken, full = threading.Semaphore(0), threading.Lock(), [], threading.Event()

    def held(self, job):
        assert may_end.acquire(timeout=ENOUGH_S)
        return job.run()

    monkeypatch.setattr(WorkerPool, "_in_a_worker", held)
    pool = WorkerPool(nr_workers, limit)

    def submit_all():
        for number in range(10):
            pool.submit(str(number), Work(double, (number,)), number)
            with lock:
                taken.append(number)
            if len(taken) == expected:
                full.set()

    submitter = threading.Thread(target=submit_all)
    submitter.start()
    assert full.wait(ENOUGH_S)
    for ended in range(10):
        with lock:
            assert len(taken) <= expected + ended
        may_end.release()
        pool.outcomes.get(timeout=ENOUGH_S)
    submitter.join()
    pool.close()


def test_what_has_not_begun_is_dropped_at_a_cancelled_close(monkeypatch):
    begun, may_end = threading.Event(), threading.Event()

    def held(self, job):
        begun.set()
        assert may_end.wait(ENOUGH_S)
        return job.run()

    monkeypatch.setattr(WorkerPool, "_in_a_worker", held)
    pool = WorkerPool(1, limit=3)
    for number in range(3):
        pool.submit(str(number), Work(double, (number,)), number)
    assert begun.wait(ENOUGH_S)
    closer = threading.Thread(target=pool.close, kwargs={"cancel": True})
    shutdown, cancelled = pool._threads.shutdown, threading.Event()

    def said(wait, cancel_futures):
        shutdown(wait=False, cancel_futures=cancel_futures)
        cancelled.set()
        shutdown(wait=wait)

    monkeypatch.setattr(pool._threads, "shutdown", said)
    closer.start()
    assert cancelled.wait(ENOUGH_S)
    may_end.set()
    closer.join()
    assert pool.outcomes.get(timeout=ENOUGH_S)[0] == 0
    assert pool.outcomes.empty()


def test_processes_are_gone_when_the_pool_is_closed(monkeypatch):
    started, worker = [], misc.workers._Worker
    monkeypatch.setattr(misc.workers, "_Worker", lambda: started.append(worker()) or started[-1])
    run(WorkerPool(2), [Work(double, (n,)) for n in range(6)])
    assert 1 <= len(started) <= 2
    assert all(w.process.exitcode is not None for w in started)


# ---------------------------------------------------------------------------------------------- shared arrays


@pytest.mark.parametrize("nr_workers", [0, 1, 2])
def test_arrays_reach_workers(nr_workers):
    """Any shape and type, none and several a job; what a worker changes, the parent sees, since nothing is copied."""
    pool, arrays = WorkerPool(nr_workers), []
    for number, (shape, dtype) in enumerate(
        [((3, 4, 5), np.float32), ((7,), np.uint8), ((0, 3), np.int32), ((), bool)]
    ):
        shared = pool.array(shape, dtype)
        assert (shared.array.shape, shared.array.dtype) == (shape, dtype)
        shared.array[...] = number
        arrays.append(shared)
    expected = [int(shared.array.sum()) for shared in arrays]
    jobs = [Work(add_up, tuple(arrays)), Work(add_up, ()), Work(add_up, (arrays[0], arrays[0]))]
    outcomes = []
    for job in jobs:
        pool.submit("job", job)
        outcomes.append(pool.outcomes.get(timeout=ENOUGH_S)[1].value)
    assert [sums for _, sums in outcomes] == [expected, [], [60, 60]]
    assert all((pid == PARENT) == (nr_workers == 0) for pid, _ in outcomes)
    assert all((shared.array == 1).all() for shared in arrays)
    pool.close()


def test_arrays_cross_where_the_system_has_no_unnamed_memory(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    pool = WorkerPool(1)
    shared = pool.array((10, 10), np.float32)
    shared.array[...] = 3
    assert shared.memory is None
    assert pickle.loads(pickle.dumps(shared)).array.tolist() == shared.array.tolist()
    assert values(run(pool, [Work(add_up_or_die, (PARENT, n, shared)) for n in range(2)])) == [300, 300]


def test_p02_arrays_are_not_lost_with_a_killed_worker():
    """Every job has arrays of its own; the one whose worker is killed is done with its own again."""
    pool = WorkerPool(2)

    def jobs():
        for number in range(12):
            shared = pool.array((100 + 10 * number,), np.int64)
            shared.array[...] = number
            yield Work(add_up_or_die, (PARENT, 2 if number % 5 == 2 else 0, shared))

    assert values(run(pool, jobs())) == [n * (100 + 10 * n) for n in range(12)]


def test_memory_is_used_again_once_its_job_is_done_and_no_sooner():
    """Arrays of jobs that are under way never share memory; in the long run there are no more than were at once."""
    pool, seen, rng = WorkerPool(2, limit=3), set(), np.random.default_rng(0)

    def jobs():
        for number in range(60):
            shared = pool.array((int(rng.integers(900, 1000)),), np.int64)
            shared.array[...] = number
            seen.add(shared.memory.key)
            yield Work(add_up_or_die, (PARENT, 0, shared))

    sizes = np.random.default_rng(0).integers(900, 1000, 60).tolist()
    assert values(run(pool, jobs())) == [n * size for n, size in enumerate(sizes)]
    assert len(seen) < 30


def test_workers_of_one_pool_serve_the_next():
    """With its own memory, though the pools before have had some; no job is done here because a worker failed."""
    idle, pids = [], set()
    for number in range(3):
        pool = WorkerPool(1, idle=idle)
        shared = pool.array((10 + number,), np.int64)
        shared.array[...] = number
        pool.submit("job", Work(add_up, (shared,)))
        pid, sums = pool.outcomes.get(timeout=ENOUGH_S)[1].value
        del shared
        pool.close()
        assert sums == [number * (10 + number)]
        pids.add(pid)
    assert len(pids - {PARENT}) == len(pids) == 1
    idle.pop().end()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells by /proc what a process maps")
def test_memory_that_is_no_longer_used_goes_in_all_processes():
    """Larger and larger arrays, of which none fits into the ones before; in the end the pool holds none."""
    pool, before = WorkerPool(1), mapped()
    for size in range(1 << 20, 10 << 20, 1 << 20):
        shared = pool.array((size,), np.uint8)
        shared.array[0] = 1
        pool.submit("job", Work(mapped, (shared,)))
        del shared
        assert pool.outcomes.get(timeout=ENOUGH_S)[1].value <= 2 * size  # its own, and at most the one before
    pool.close()
    assert mapped() <= before


def test_an_array_of_no_pool_is_pickled():
    shared = SharedArray((2, 3), np.float32)
    shared.array[...] = 5
    assert pickle.loads(pickle.dumps(shared)).array.tolist() == [[5, 5, 5]] * 2


def test_worker_counts_are_limited_and_it_is_said(caplog, monkeypatch):
    monkeypatch.setattr("misc.workers.cpu_count", lambda: 2)
    with caplog.at_level(logging.INFO):
        assert limit_workers("--nr_post_proc_workers", 16, useful=100) == 2
    assert "--nr_post_proc_workers=16 -> 2" in caplog.text
    assert limit_workers("--x", 16, useful=1) == 1
    assert limit_workers("--x", 0, useful=5) == 0
    with pytest.raises(ValueError, match="0 or more"):
        limit_workers("--x", -1, useful=5)
