"""Answers to Celery's commands for workers."""

from __future__ import annotations

from typing import Any

from girder_dask.plugin.celery.control import WorkerAnswers

PAGE = ("report", "stats", "ping", "active", "reserved")


class Scheduler:
    """A scheduler that answers or does not, and a clock that goes on while it is asked."""

    def __init__(self, workers: list[dict[str, Any]], takes_s: float) -> None:
        self.now = 0.0
        self.asked: list[float] = []
        self._workers = workers
        self._takes_s = takes_s

    def ask(self, timeout_s: float) -> list[dict[str, Any]]:
        self.asked.append(self.now)
        self.now += min(timeout_s, self._takes_s)
        return self._workers

    def answers(self) -> WorkerAnswers:
        return WorkerAnswers(self.ask, lambda: self.now)


def test_worker_answers_ask_once_for_all_commands_of_a_page() -> None:
    worker = {"name": "a", "nthreads": 2, "resources": {}, "active": [{"id": "1", "task": "p:f"}]}
    scheduler = Scheduler([worker], takes_s=0.4)
    answers = scheduler.answers()
    page = {method: answers.to(method) for method in PAGE}
    assert scheduler.asked == [0.0]
    assert page["ping"] == {"dask@a": {"ok": "pong"}}
    assert page["stats"]["dask@a"]["pool"] == {"max-concurrency": 2}
    assert [task["id"] for task in page["active"]["dask@a"]] == ["1"]


def test_worker_answers_wait_once_for_a_scheduler_that_hangs() -> None:
    scheduler = Scheduler([], takes_s=60)
    answers = scheduler.answers()
    assert [answers.to(method) for method in PAGE[2:]] == [{}, {}, {}]
    assert scheduler.now == 0.5


def test_worker_answers_ask_again_after_a_moment() -> None:
    scheduler = Scheduler([], takes_s=0.1)
    answers = scheduler.answers()
    answers.to("ping")
    scheduler.now += 1
    answers.to("ping")
    assert scheduler.asked == [0.0, 1.1]
