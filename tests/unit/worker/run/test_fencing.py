"""What a run asks before it calls its function."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from girder_dask.errors import JobCanceled
from girder_dask.jobs import JobStatus
from girder_dask.utils.backoff import Backoff
from girder_dask.worker.run import fencing
from girder_dask.worker.run.fencing import StartAnswer, await_recorded_attempt
from tests.support.deadline import SECONDS, until
from tests.support.run_worker import Worker

S = JobStatus


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "_CHECK_INTERVAL_S", 0.001)
    monkeypatch.setattr(fencing, "_ASK_BACKOFF", Backoff(0.001, 0.001))


def answered(answer: bool | Exception | None) -> StartAnswer:
    future: StartAnswer = Future()
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
    return future


def asking(*answers: bool | Exception | None) -> Callable[[], StartAnswer]:
    left = iter(answers)
    return lambda: answered(next(left))


def test_it_asks_until_it_is_told() -> None:
    assert await_recorded_attempt(
        asking(None, OSError("away"), LookupError("odd"), True), lambda: None
    )
    assert not await_recorded_attempt(asking(None, False), lambda: None)


def test_while_it_waits_it_is_looked_whether_the_run_is_to_end() -> None:
    asked: StartAnswer = Future()
    looks = iter([None, None, JobCanceled("Enough.")])

    def check() -> None:
        if (error := next(looks)) is not None:
            raise error

    with pytest.raises(JobCanceled):
        await_recorded_attempt(lambda: asked, check)
    assert asked.cancelled(), "nobody waits for it any more"


def test_a_question_that_is_called_off_is_asked_again() -> None:
    gone: StartAnswer = Future()
    gone.cancel()
    questions = iter([gone, answered(True)])
    assert await_recorded_attempt(lambda: next(questions), lambda: None)


# -- in a run ------------------------------------------------------------------------------


called = threading.Event()


def call() -> str:
    called.set()
    return "called"


class Scheduler:
    """Answers runs when it is told to."""

    def __init__(self, worker: Worker) -> None:
        self.asked: list[tuple[str, int]] = []
        self.answer: StartAnswer = Future()
        called.clear()
        worker.context.may_start = self.may_start

    def may_start(self, key: str, attempt: int) -> StartAnswer:
        self.asked.append((key, attempt))
        return self.answer


def test_the_first_attempt_asks_nobody(worker: Worker) -> None:
    scheduler = Scheduler(worker)
    assert worker.outcome(call) == "called"
    assert scheduler.asked == []


def test_another_attempt_calls_its_function_when_it_may(worker: Worker) -> None:
    scheduler = Scheduler(worker)
    future = worker.begin(worker.run(call, attempt=2))
    until(lambda: scheduler.asked)
    assert not called.wait(0.05)
    assert worker.statuses() == []
    scheduler.answer.set_result(True)
    assert future.result(SECONDS) == "called"
    assert scheduler.asked == [("f-a-2", 2)]


@pytest.mark.parametrize("how", ["over", "canceled", "dropped"])
def test_an_attempt_that_is_to_end_does_not_call_its_function(worker: Worker, how: str) -> None:
    scheduler = Scheduler(worker)
    run = worker.run(call, attempt=2)
    future: Future[Any] = worker.begin(run)
    until(lambda: scheduler.asked)
    if how == "over":
        scheduler.answer.set_result(False)
    elif how == "canceled":
        run.control.cancel()
    else:
        run.control.drop()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    # What becomes of the job is for another run to say, or for nobody.
    assert run.control.reports_end == (how == "canceled")
    until(lambda: worker.statuses() == ([S.CANCELED] if run.control.reports_end else []))
    assert not called.is_set()
