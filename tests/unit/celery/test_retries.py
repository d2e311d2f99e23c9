"""Notes with which a task is tried again."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from girder_dask.celery import message_body, retries
from girder_dask.errors import ArgumentError
from girder_dask.protocol.celery_message import CeleryMessage
from girder_dask.protocol.messages import MAX_MOMENT_S, JobEvent, RetryRequest


def message(args: Any, **headers: Any) -> CeleryMessage:
    body = json.dumps([args, {}, {"chain": None}])
    return CeleryMessage("1", "tasks.add", "celery", body, headers={"lang": "py", **headers})


def test_a_retry_keeps_the_arguments_and_counts() -> None:
    first = message({"py/tuple": [1, 2]}, retries=0)
    again = replace(message([1, 2]), headers={"retries": 1, "eta": "2026-11-30T00:00:00+00:00"})
    request = retries.request(first, again)
    assert request.not_before == 1795996800.0
    assert len(request.note or b"") < 200
    continued = retries.continued(first, request.note or b"")
    assert continued.body == first.body
    assert (continued.headers["retries"], continued.headers["lang"]) == (1, "py")


def test_a_retry_with_other_arguments_has_them() -> None:
    first = message([1])
    request = retries.request(first, message([2], retries=1))
    continued = retries.continued(first, request.note or b"")
    assert message_body.arguments(continued) == [[2], {}]


def test_a_retry_with_large_other_arguments_is_refused() -> None:
    with pytest.raises(ArgumentError, match="asks to be tried again with other arguments"):
        retries.request(message([1]), message(["x" * 100_000]))


def test_a_retry_with_the_same_large_arguments_is_not() -> None:
    large = message(["x" * 100_000])
    assert retries.request(large, replace(large, headers={"retries": 1})).note is not None


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        ("9999-12-31T23:59:59.999999", MAX_MOMENT_S),
        ("9999-12-31T23:59:59.999999-12:00", MAX_MOMENT_S),
        ("0001-01-01T00:00:00", 0),
        ("1969-12-31T23:59:59+00:00", 0),
        ("2026-11-30T00:00:00+00:00", 1795996800),
    ],
)
def test_request_keeps_the_time_within_that_of_messages(eta: str, expected: int) -> None:
    asked = retries.request(message([1]), message([1], retries=1, eta=eta))
    assert asked.not_before == expected
    event = JobEvent("5f" * 12, 1, 0.0, retry=RetryRequest(asked.not_before, asked.note))
    assert JobEvent.from_wires([event.to_wire()]) == [event]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    """The time, which stands still."""
    moment = 1795996800.0
    monkeypatch.setattr(retries, "time", SimpleNamespace(time=lambda: moment))
    return moment


def interval_s(now: float, task: str, retry: int, asked_s: float) -> float:
    """Return how long the next run waits for which a task asks."""
    eta = datetime.fromtimestamp(now + asked_s, timezone.utc)
    first = replace(message([1]), task=task)
    again = replace(first, headers={"retries": retry, "eta": eta.isoformat()})
    return retries.request(first, again).not_before - now


def test_request_lets_the_interval_of_a_chord_grow_with_the_time_that_has_passed(
    now: float,
) -> None:
    passed_s, polls = 1.0, 0
    while passed_s < 8 * 3600:
        wait_s = interval_s(now, "celery.chord_unlock", polls + 1, 1.0)
        # The body of a chord starts late by a second and a twentieth of its duration at most.
        assert wait_s <= 1.001 + passed_s / 20
        passed_s += wait_s
        polls += 1
    assert 500 < polls < 600


@pytest.mark.parametrize(
    ("task", "retry", "asked_s", "expected_s"),
    [
        ("celery.chord_unlock", 1, 1.0, 1.05),
        ("celery.chord_unlock", 1_000_000, 1.0, 60.0),
        ("celery.chord_unlock", 50, 300.0, 300.0),
        ("tasks.add", 200, 1.0, 1.0),
    ],
)
def test_request_waits_as_asked_except_for_the_polls_of_a_chord(
    now: float, task: str, retry: int, asked_s: float, expected_s: float
) -> None:
    assert interval_s(now, task, retry, asked_s) == pytest.approx(expected_s, abs=1e-3)
