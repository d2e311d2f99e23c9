"""The time for which requests are retried."""

from __future__ import annotations

import time
from collections.abc import Iterator

import dask
import pytest
import requests

from girder_dask.http.request_errors import GATEWAY_STATUSES
from girder_dask.http.retry import RetryBudget, retry
from girder_dask.utils.backoff import Backoff

FAST = Backoff(0.01, 0.02)
AWAY = requests.ConnectionError("away")


@pytest.fixture(autouse=True)
def retry_time() -> Iterator[None]:
    with dask.config.set({"girder.worker.retry-time": "20 s"}):
        yield


def answered(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


def test_retry_budget_of_no_time_raises_at_once() -> None:
    with pytest.raises(requests.ConnectionError):
        RetryBudget(0.0).wait(AWAY)


def test_retry_budget_is_used_to_its_end() -> None:
    budget = RetryBudget(0.3, backoff=Backoff(0.2, 60.0, jitter=0.0))
    began = time.monotonic()

    def use_up() -> None:
        while True:
            budget.wait(AWAY)

    with pytest.raises(requests.ConnectionError):
        use_up()
    assert time.monotonic() - began >= 0.3


def test_retry_budget_starts_again_after_progress() -> None:
    budget = RetryBudget(0.05, backoff=FAST)
    for _ in range(10):
        budget.wait(AWAY)
        budget.progress()


def test_retry_budget_retries_the_given_statuses_only() -> None:
    budget = RetryBudget(20.0, statuses=GATEWAY_STATUSES, backoff=FAST)
    budget.wait(answered(503))
    with pytest.raises(requests.HTTPError):
        budget.wait(answered(500))


@pytest.mark.parametrize(("health", "most"), [(200, 3), (500, 10)])
def test_retry_budget_gives_up_on_a_request_that_stays_broken(health: int, most: int) -> None:
    budget = RetryBudget(20.0, probe=lambda: health, backoff=FAST)
    tries = 1
    try:
        while tries < most:
            budget.wait(answered(500))
            tries += 1
        if health == 200:
            budget.wait(answered(500))
    except requests.HTTPError:
        assert health == 200
    assert tries == most


def test_retry_budget_can_be_silent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girder_dask.http.retry._LOG_DELAY_S", -1.0)
    for is_silent in (True, False):
        budget = RetryBudget(20.0, backoff=FAST, is_silent=is_silent)
        budget.wait(AWAY)
        budget.wait(AWAY)
    assert caplog.messages == ["Girder is unavailable (away). Retrying for 20 s."]


def test_retry_returns_the_first_answer() -> None:
    answers: list[Exception | str] = [AWAY, answered(503), "coins"]

    def request() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retry(request) == "coins"
    assert answers == []
