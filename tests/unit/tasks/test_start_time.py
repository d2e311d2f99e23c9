"""The options ``countdown`` and ``eta`` of a call."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from girder_dask import task
from girder_dask.client.backend import use_backend
from girder_dask.errors import SubmissionError
from girder_dask.jobs import waits_for
from girder_dask.protocol.messages import MAX_DELAY_S
from girder_dask.tasks.start_time import not_before
from tests.support.recording_backend import RecordingBackend

NOON = datetime.fromisoformat("2126-11-30T12:00:00")
LONG_AGO = datetime.fromisoformat("2001-01-01")


@task
def add(a: int, b: int = 2) -> int:
    return a + b


@pytest.fixture
def backend() -> Iterator[RecordingBackend]:
    backend = RecordingBackend()
    with use_backend(backend):
        yield backend


@pytest.mark.parametrize("seconds", [60, 60.0, np.float32(60), np.int8(60)])
def test_countdown_counts_from_now(seconds: Any) -> None:
    before = time.time()
    moment = not_before("t", {"countdown": seconds, "eta": None})
    assert moment is not None
    assert before + 60 <= moment <= time.time() + 60


@pytest.mark.parametrize(
    "eta",
    [
        lambda moment: moment,
        lambda moment: moment.astimezone(timezone(timedelta(hours=-5))),
        lambda moment: moment.replace(tzinfo=None),
    ],
    ids=["UTC", "another zone", "naive"],
)
def test_eta_is_in_its_zone_or_in_utc(eta: Callable[[datetime], datetime]) -> None:
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    moment = not_before("t", {"eta": eta(tomorrow)})
    assert moment is not None
    assert moment - time.time() == pytest.approx(86_400, abs=60)


@pytest.mark.parametrize("past", [{"countdown": 0}, {"countdown": -5}, {"eta": LONG_AGO}, {}])
def test_a_time_that_has_passed_is_now(past: dict[str, Any]) -> None:
    assert not_before("t", past) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"countdown": 5, "eta": NOON}, "Give one of them"),
        ({"countdown": "5"}, "countdown='5', where a number of seconds from now is expected"),
        ({"countdown": True}, "a number of seconds"),
        ({"countdown": math.nan}, "a number of seconds"),
        ({"countdown": math.inf}, "countdown=inf, where at most 3,652 days from now is expected"),
        ({"countdown": MAX_DELAY_S + 60}, "at most 3,652 days"),
        ({"countdown": 10**5000}, "countdown=…, where a number of seconds"),
        ({"eta": NOON}, "at most 3,652 days"),
        ({"eta": "2026-11-30"}, r"where a datetime\.datetime is expected"),
        ({"eta": NOON.date()}, r"where a datetime\.datetime is expected"),
    ],
)
def test_invalid_times_are_refused(
    backend: RecordingBackend, wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(SubmissionError, match=told) as error:
        add.apply_async((1,), **wrong)
    assert str(error.value).endswith("No job was created.")
    assert backend.submissions == []


def test_apply_async_and_options_set_the_earliest_start(backend: RecordingBackend) -> None:
    later = add.options(countdown=3600)
    later.delay(1)
    later.apply_async((1,), countdown=60)
    later.options(eta=datetime.now(timezone.utc) + timedelta(seconds=10)).delay(1)
    pickle.loads(pickle.dumps(later.settings))
    add.s(1).set(countdown=20).delay()
    add.delay(1)
    delays = [
        None if sent.not_before is None else sent.not_before - time.time()
        for sent in backend.submissions
    ]
    assert delays.pop() is None
    assert delays == pytest.approx([3600, 60, 10, 20], abs=5)


def test_delay_passes_arguments_of_these_names_to_the_function(backend: RecordingBackend) -> None:
    @task
    def launch(countdown: int) -> int:
        return countdown

    backend.ships_code = True
    launch.delay(countdown=5)
    assert backend.submissions[0].not_before is None


def test_a_call_without_a_job_has_no_start_time() -> None:
    with pytest.raises(SubmissionError, match="start time of the call need a job"):
        add.apply_async((1,), girder_job_disable=True, countdown=5)


@pytest.mark.parametrize("moment", [NOON, NOON.replace(tzinfo=timezone.utc), "2126-11-30T12:00"])
def test_waits_for_names_the_time_until_it_has_come(moment: Any) -> None:
    job = {"status": 1, "dask": {"not_before": moment, "waits": "no worker"}}
    assert waits_for(job) == "it is to start at 2126-11-30 12:00:00 UTC"
    job["dask"] = {"not_before": LONG_AGO, "waits": "no worker"}
    assert waits_for(job) == "no worker"
    assert waits_for({"status": 2, "dask": {"not_before": moment}}) == ""


@pytest.mark.parametrize("malformed", [7, "soon", [], None])
def test_waits_for_ignores_a_malformed_time(malformed: Any) -> None:
    assert waits_for({"status": 1, "dask": {"not_before": malformed, "waits": "x"}}) == "x"
