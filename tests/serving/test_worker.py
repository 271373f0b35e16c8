"""The worker's queue: in turns, bounded, with jobs that can be dropped."""

import threading
import time
from concurrent.futures import wait

import pytest

from rlhf_marl.serving.worker import Busy, Dropped, Worker


@pytest.fixture
def gate():
    """A part that waits until the event is set."""
    return threading.Event()


@pytest.fixture
def worker():
    worker = Worker(size=3)
    yield worker
    worker.close()


def test_long_jobs_do_not_hold_up_short_ones(worker, gate):
    order = []
    first = worker.submit([gate.wait])  # until both others wait
    long = worker.submit([lambda n=n: order.append(f"long {n}") for n in range(3)])
    short = worker.submit([lambda: order.append("short")])
    gate.set()
    wait([first, long, short], timeout=5)
    assert order == ["long 0", "short", "long 1", "long 2"]


def test_results_are_in_order(worker):
    assert worker.submit([lambda: 1, lambda: 2]).result(5) == [1, 2]


def test_a_full_queue_refuses_and_a_dropped_job_makes_room(worker, gate):
    ran = []
    jobs = [worker.submit([gate.wait]), *(worker.submit([lambda: ran.append(1)]) for _ in range(2))]
    with pytest.raises(Busy):
        worker.submit([gate.wait])
    jobs[1].cancel()
    last = worker.submit([lambda: 3])
    gate.set()
    assert last.result(5) == [3]
    assert ran == [1]


def test_work_under_way_is_dropped_at_the_next_check(worker):
    begun, outcome = threading.Event(), []

    def work():
        begun.set()
        try:
            while True:
                worker.check()
                time.sleep(0.001)
        except Dropped:
            outcome.append("dropped")
            raise

    job = worker.submit([work])
    assert begun.wait(5)
    worker.check()  # of another thread: nothing
    job.cancel()
    assert worker.submit([lambda: list(outcome)]).result(5) == [["dropped"]]


def test_an_error_ends_its_job_alone(worker):
    def fail():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        worker.submit([fail]).result(5)
    assert worker.submit([lambda: 1]).result(5) == [1]


def test_closing_cancels_what_waits(gate):
    worker = Worker(size=3)
    jobs = [worker.submit([gate.wait]), worker.submit([lambda: 1])]
    threading.Timer(0.1, gate.set).start()
    worker.close()
    assert [job.cancelled() for job in jobs] == [True, True]
    assert not worker._thread.is_alive()
    with pytest.raises(Busy):
        worker.submit([lambda: 1])
