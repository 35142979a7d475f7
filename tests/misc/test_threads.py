"""Threads and worker processes where the system has no room for as many as were asked for."""

from __future__ import annotations

import errno
import threading

import pytest
from test_workers import run, values
from worker_jobs import Work, double

import misc.workers
from misc.threads import start_threads, thread_pool
from misc.workers import WorkerPool


def test_fewer_threads_than_asked_for_are_said_and_used(monkeypatch, caplog):
    real, started = threading.Thread.start, []

    def start(thread):
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    pool = thread_pool(8)
    with pytest.raises(OSError, match="no more threads can be started"):
        start_threads([threading.Thread(target=print)])
    monkeypatch.undo()
    assert pool._max_workers == 3
    assert "3 threads instead of 8: no more threads can be started" in caplog.text


def test_without_room_for_workers_this_process_does_the_work_and_it_is_said_once(monkeypatch, caplog):
    real, started = misc.workers._Worker, []

    def start():
        if started:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        started.append(real())
        return started[0]

    monkeypatch.setattr(misc.workers, "_Worker", start)
    assert values(run(WorkerPool(3), [Work(double, (n,)) for n in range(7)])) == [2 * n for n in range(7)]
    assert caplog.text.count("1 worker processes: no more can start ([Errno 12] Cannot allocate memory)") == 1
