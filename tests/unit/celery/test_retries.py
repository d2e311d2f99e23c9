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


def sent(queue: str = "celery", priority: Any = None, **headers: Any) -> CeleryMessage:
    info = {"exchange": "", "routing_key": queue}
    properties = {"priority": priority, "delivery_info": info}
    return replace(message([1], **headers), queue=queue, properties=properties)


def test_request_says_nothing_of_what_stays() -> None:
    given = sent("gpu", 3, timelimit=[60, 50])
    asked = retries.request(given, given)
    assert (asked.timeout, asked.priority, asked.resources) == (None, None, None)


def test_request_has_the_options_that_the_task_changes() -> None:
    asked = retries.request(sent(), sent("gpu", 4, timelimit=[60, 50]), trusted=False)
    assert (asked.timeout, asked.priority, asked.resources) == (60.0, 0, {"queue:gpu": 1.0})
    asked = retries.request(sent("gpu", 3, timelimit=[60, None]), sent(priority=9))
    assert (asked.timeout, asked.priority, asked.resources) == (0.0, 9, {})


def test_request_of_a_later_run_has_what_an_earlier_one_has_changed() -> None:
    first = sent()
    note = retries.request(first, sent("gpu", 4, timelimit=[60, 50])).note or b""
    second = retries.continued(first, note)
    assert (second.queue, second.properties) == ("gpu", sent("gpu", 4).properties)
    assert second.headers["timelimit"] == [60, 50]
    asked = retries.request(second, second, first=first)
    assert (asked.timeout, asked.priority, asked.resources) == (60.0, 4, {"queue:gpu": 1.0})


def test_request_stays_within_what_the_sender_may_ask_for() -> None:
    asked = retries.request(sent(), sent(priority=10**12, timelimit=[1e12, 0]), trusted=False)
    assert (asked.priority, asked.timeout) == (0, 30 * 24 * 3600.0)
    asked = retries.request(sent(priority=2), sent(priority=7), trusted=False)
    assert asked.priority == 2
    assert retries.request(sent(), sent(priority=10**12)).priority == 2**31 - 1
    with pytest.raises(
        ArgumentError, match="Only the first message of a job takes it to the queue"
    ):
        retries.request(sent(), sent("local"))
    for queue in ("a\nb", "q" * 200):
        with pytest.raises(ArgumentError, match="The name of a queue is"):
            retries.request(sent(), sent(queue))
