"""What transforms are given, and the progress in bytes that they show."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from girder_dask import current_job
from girder_dask.errors import TransformError
from girder_dask.files.transform_base import ResultTransform, Transform
from girder_dask.jobs import JobStatus
from girder_dask.worker.run.transform_runner import amount
from tests.support.run_worker import Worker


def shown(worker: Worker) -> list[dict[str, Any]]:
    return [dict(e.progress) for e in worker.events if e.progress is not None]


class Fetched(Transform):
    def __init__(self, name: str, size: int | None) -> None:
        super().__init__()
        self.name, self.size = name, size

    def transform(self) -> Any:
        assert self.report is not None
        self.report(10, self.size, self.name)
        self.report(self.size or 20, self.size, self.name)
        return self.cache


class Pushed(ResultTransform):
    def transform(self, data: Any) -> Any:
        assert self.report is not None
        self.report(5, 10, "out.png")
        return data


def test_bytes_are_summed_and_what_the_task_has_shown_is_shown_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def found(*_: Any) -> None:
        current_job().job_manager.updateProgress(total=4, current=4, message="Found 24")

    run = worker.run(
        found,
        Fetched("a.png", 2_000_000),
        [Fetched("b.png", 3_000_000)],
        hooks=[Pushed()],
    )
    original = run._sink.progress

    def note(changes: Any) -> None:
        told.append((changes["current"], changes["total"], changes["message"]))
        original(changes)

    monkeypatch.setattr(run._sink, "progress", note)
    worker.begin(run).result(20)
    assert told == [
        (10, 2_000_000, "Fetching a.png, 10 B of 1.91 MiB"),
        (2_000_000, 2_000_000, "Fetching a.png, 1.91 MiB of 1.91 MiB"),
        (2_000_010, 5_000_000, "Fetching b.png, 1.91 MiB of 4.77 MiB"),
        (5_000_000, 5_000_000, "Fetching b.png, 4.77 MiB of 4.77 MiB"),
        (0, 0, ""),
        (4, 4, "Found 24"),
        (5, 10, "Uploading out.png, 5 B of 10 B"),
        (4, 4, "Found 24"),
    ]


def test_an_unknown_size_shows_what_has_come(worker: Worker) -> None:
    worker.outcome(lambda _: None, Fetched("a.png", None))
    assert shown(worker)[-1] == {"total": 0, "current": 0, "message": ""}


def test_inputs_that_show_nothing_leave_the_progress_alone(worker: Worker) -> None:
    class Silent(Transform):
        def transform(self) -> int:
            return 1

    assert worker.outcome(lambda a: a, Silent()) == 1
    assert shown(worker) == []


def test_a_transform_gets_the_cache_of_the_station(worker: Worker) -> None:
    worker.context.cache = {"a": "cache"}
    assert worker.outcome(lambda a: a, Fetched("a.png", 1)) == {"a": "cache"}


class Foreign:
    """A transform of somebody else, with attributes that mean something else."""

    def __init__(self, error: Exception | None = None) -> None:
        self.cache, self.report, self.error = "mine", "mine too", error

    def transform(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.cache, self.report

    def cleanup(self) -> None:
        pass


def test_what_a_foreign_transform_has_is_its_own(worker: Worker) -> None:
    assert worker.outcome(lambda a: a, Foreign()) == ("mine", "mine too")


def test_an_http_error_of_a_foreign_transform_is_told_in_a_sentence(worker: Worker) -> None:
    response = requests.Response()
    response.status_code = 403
    response._content = b'{"message": "Read access denied"}'
    error = worker.outcome(lambda a: a, Foreign(requests.HTTPError("no", response=response)))
    assert isinstance(error, TransformError)
    assert worker.statuses()[-1] == JobStatus.ERROR
    assert "Foreign: The owner of the job may not do this (Read access denied)." in worker.log()
    assert "Traceback" not in worker.log()


def test_an_error_of_its_own_keeps_its_traceback(worker: Worker) -> None:
    worker.outcome(lambda a: a, Foreign(KeyError("mine")))
    assert "Traceback" in worker.log()
    assert "KeyError: 'mine'" in worker.log()


@pytest.mark.parametrize(
    ("current", "total", "words"),
    [
        (0, 0, "0 B of 0 B"),
        (12_345_678, 10**8, "11.77 MiB of 95.37 MiB"),
        (1_500, None, "1.46 kiB"),
        (0, 3 * 10**12, "0 B of 2.73 TiB"),
        (700, 1_000, "700 B of 0.98 kiB"),
        (123_456, 456_789, "120.56 kiB of 446.08 kiB"),
    ],
)
def test_amounts_are_short(current: int, total: int | None, words: str) -> None:
    assert amount(current, total) == words
