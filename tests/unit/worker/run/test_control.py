"""Runs that are canceled, interrupted or given to another worker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
import time
import traceback

import pytest

from girder_dask import current_job, task
from girder_dask.errors import (
    JobCanceled,
    JobInterrupted,
)
from girder_dask.jobs import JobStatus
from girder_dask.worker import cancellation
from girder_dask.worker.cancellation import RunCanceller
from tests.support.deadline import SECONDS, until
from tests.support.held_tasks import deaf, go_on, patient, started, stubborn
from tests.support.noting_transforms import Input, did
from tests.support.run_worker import Worker, brought, captured

S = JobStatus


def test_a_job_canceled_before_it_begins_does_not_run(worker: Worker) -> None:
    run = worker.run(None, task=patient.name)
    run.control.cancel()
    assert isinstance(worker.begin(run).exception(SECONDS), JobCanceled)
    assert not started.is_set()
    until(lambda: worker.statuses() == [S.CANCELED])
    assert worker.log() == "The job was canceled.\n"


def test_a_key_that_was_refused_is_not_begun_with(worker: Worker) -> None:
    """Its cancellation came while it waited on this worker."""
    called: list[int] = []
    run = worker.run(called.append, 1)
    canceller = RunCanceller(worker.context.runs, worker.context.refused, grace_s=0.0)
    assert canceller.cancel([run.control.key]) == {run.control.key}
    assert isinstance(worker.begin(run).exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.CANCELED])
    assert called == []
    assert worker.log() == "The job was canceled.\n"


interrupted: list[float] = []


@task
def counts() -> None:
    interrupted.clear()
    started.set()
    while not go_on.is_set():
        try:
            while not go_on.wait(0.002):
                pass
        except JobInterrupted:
            interrupted.append(time.monotonic())


@task
def answers() -> None:
    started.set()
    try:
        while not go_on.wait(0.002):
            pass
    except JobInterrupted as e:
        raise ValueError("in an answer of its own") from e


def test_a_canceled_job_that_answers_with_an_error_is_canceled(worker: Worker) -> None:
    run = worker.run(None, task=answers.name, retries=3)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    run.control.interrupt()
    error = future.exception(SECONDS)
    assert isinstance(error and brought(error), ValueError)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert "ValueError: in an answer of its own\n" in worker.log()
    assert worker.log().endswith("The job was canceled.\n")
    assert worker.end.error is None


def test_a_run_that_nobody_hears_does_not_say_how_the_job_ended(worker: Worker) -> None:
    run = worker.run(None, task=patient.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.drop()
    future.exception(SECONDS)
    assert not run.control.reports_end
    until(lambda: run.control.id not in worker.context.runs)
    assert worker.statuses() == [S.RUNNING]


def test_to_be_stopped_again_changes_neither_grace_nor_count(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when each batch of what a run prints brings the answer that nobody hears it."""
    monkeypatch.setattr(cancellation, "_MIN_INTERRUPT_INTERVAL_S", 60.0)
    run = worker.run(None, task=counts.name)

    async def stop() -> None:
        canceller = RunCanceller(worker.context.runs, worker.context.refused, grace_s=0.5)
        canceller.cancel([run.control.key])
        while time.monotonic() < begun + 1.2 or not interrupted:
            canceller.drop([run.control.id])
            await asyncio.sleep(0.02)

    future = worker.begin(run)
    assert started.wait(SECONDS)
    begun = time.monotonic()
    asyncio.run(stop())
    go_on.set()
    future.exception(SECONDS)
    assert len(interrupted) == 1, "once, after the grace"
    assert interrupted[0] - begun >= 0.45


def test_a_job_canceled_before_it_begins_fetches_nothing(worker: Worker) -> None:
    run = worker.run(lambda _: None, Input("a"))
    run.control.cancel()
    assert isinstance(worker.begin(run).exception(SECONDS), JobCanceled)
    assert did == []


def test_a_task_may_stop_by_itself(worker: Worker) -> None:
    run = worker.run(None, task=patient.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    assert worker.context.runs == {run.control.id: run.control}
    run.control.cancel()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])


def test_a_loop_in_python_is_interrupted(worker: Worker) -> None:
    run = worker.run(None, task=deaf.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert list(worker.context.directory.glob("*")) == []


def test_a_task_that_swallows_the_interruption_is_canceled_nevertheless(worker: Worker) -> None:
    run = worker.run(None, task=stubborn.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses()[-1:] == [S.CANCELED])


@pytest.mark.parametrize("name", ["deaf", "stubborn"])
def test_a_call_that_takes_longer_than_it_may_ends_in_error(worker: Worker, name: str) -> None:
    worker.outcome(None, task=f"{__name__}:{name}", timeout=0.5)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert worker.end.error is not None
    assert "0.5 s" in worker.log()
    assert worker.outcome(lambda: 1, job_id="b", timeout=SECONDS) == 1


def test_the_watch_over_a_call_ends_with_it(worker: Worker) -> None:
    before = threading.active_count()
    for n in range(5):
        assert worker.outcome(lambda: 1, job_id=str(n), timeout=SECONDS) == 1
    until(lambda: threading.active_count() <= before + 4)


def test_after_its_end_a_run_interrupts_nobody(worker: Worker) -> None:
    run = worker.run(lambda: 1)
    worker.threads = concurrent.futures.ThreadPoolExecutor(1)
    assert worker.begin(run).result(SECONDS) == 1
    run.control.cancel()
    run.control.interrupt()
    assert worker.threads.submit(lambda: sum(range(100_000))).result(SECONDS) == 4999950000


def test_an_interruption_while_the_end_is_written_does_not_lose_it(worker: Worker) -> None:
    """The log is full because the scheduler does not answer; its writer waits in the runner."""
    worker.context.outbox = worker.make_outbox(capacity=5)
    first = worker.run(None, task=deaf.name, job_id="b")  # keeps the outbox busy

    def work() -> None:
        current_job().job_manager.write("0123456789\n")
        raise ValueError("no coins")

    worker.open.clear()
    busy = worker.begin(first)
    assert started.wait(SECONDS)
    until(lambda: worker.sends)
    run = worker.run(work)
    future = worker.begin(run)

    def waits_for_room() -> bool:
        for innermost in sys._current_frames().values():
            names = {frame.f_code.co_name for frame, _ in traceback.walk_stack(innermost)}
            if {"wait_for_room", "failed"} <= names:
                return True
        return False

    until(waits_for_room)
    run.control.cancel()
    run.control.interrupt()
    worker.open.set()
    error = future.exception(SECONDS)
    go_on.set()
    busy.result(SECONDS)
    until(lambda: worker.statuses("a")[-1:] in ([S.ERROR], [S.CANCELED]))
    assert isinstance(error and brought(error), (ValueError, JobCanceled))
    assert list(worker.context.directory.glob("*")) == []


def test_the_end_of_one_run_of_a_job_does_not_hide_another(worker: Worker) -> None:
    """A scheduler may have given up the old attempt; the new one must still be stoppable."""
    old = worker.run(None, task=patient.name, attempt=1)
    old_future = worker.begin(old)
    assert started.wait(SECONDS)
    started.clear()
    new = worker.run(None, task=patient.name, attempt=2)
    new_future = worker.begin(new)
    assert started.wait(SECONDS)
    old.control.cancel()
    assert isinstance(old_future.exception(SECONDS), JobCanceled)
    try:
        assert worker.context.runs == {new.control.id: new.control}
    finally:
        new.control.cancel()
        new_future.exception(SECONDS)


def test_many_runs_at_once_keep_to_themselves(worker: Worker) -> None:
    def work(name: str) -> str:
        for n in range(100):
            print(f"{name} {n}")
            if n % 20 == 0:
                time.sleep(0)
        return current_job().id or ""

    names = [f"job{n}" for n in range(12)]
    with captured():
        futures = {name: worker.begin(worker.run(work, name, job_id=name)) for name in names}
        assert {name: f.result(SECONDS) for name, f in futures.items()} == {n: n for n in names}
    until(lambda: all(worker.statuses(name)[-1:] == [S.SUCCESS] for name in names))
    for name in names:
        assert worker.log(name) == "".join(f"{name} {n}\n" for n in range(100))
