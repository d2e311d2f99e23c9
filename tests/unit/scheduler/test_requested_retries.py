"""Runs that ask for another attempt of their job."""

from __future__ import annotations

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import RetryRequest
from tests.support.dispatch_site import Site

NOW = 1_800_000_000.0
S = JobStatus


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site whose wall clock advances with that of its cluster."""
    site = Site()
    monkeypatch.setattr(
        "girder_dask.scheduler.job_transitions.time.time", lambda: NOW + site.cluster.now
    )
    return site


def test_a_requested_retry_is_a_new_attempt_at_its_time(site: Site) -> None:
    spec = site.accept()
    request = RetryRequest(NOW + 30, b"note")
    assert site.running(spec).says(log="last words\n", retry=request)
    site.end(spec, "w1", None)
    assert site.history() == [(1, S.RUNNING), (2, S.QUEUED)]
    assert site.log() == (
        "last words\nThe task asks to be tried again at 2027-01-15 08:00:30 UTC as attempt 2.\n"
    )
    assert [event.retry for event in site.events if event.retry] == [request]
    assert site.cluster.submitted == [spec.key]
    site.cluster.advance(31)
    again = site.again(spec)
    assert (again.attempt, again.retry_note) == (2, b"note")
    site.running(again).says(S.SUCCESS)
    assert site.history()[-1] == (2, S.SUCCESS)


def test_a_requested_retry_without_delay_starts_at_once(site: Site) -> None:
    spec = site.accept(at_most_once=True)
    site.running(spec).says(retry=RetryRequest(NOW))
    assert site.again(spec).attempt == 2
    assert site.log() == "The task asks to be tried again as attempt 2.\n"


def test_a_requested_retry_of_a_canceled_job_ends_it(site: Site) -> None:
    spec = site.accept()
    run = site.running(spec)
    site.dispatcher.cancel([spec.id])
    run.says(retry=RetryRequest(NOW))
    assert site.history()[-1] == (1, S.CANCELED)
    assert site.cluster.submitted == [spec.key]


def test_events_of_the_run_that_asked_are_ignored(site: Site) -> None:
    spec = site.accept()
    run = site.running(spec)
    run.says(retry=RetryRequest(NOW + 5))
    assert not run.says(S.SUCCESS)
    assert site.history()[-1] == (2, S.QUEUED)


def test_requested_retries_do_not_use_up_the_retries_of_the_call(site: Site) -> None:
    spec = site.accept(retries=1)
    site.running(spec).says(retry=RetryRequest(NOW))
    site.running(site.again(spec)).says(S.ERROR)
    assert site.history()[-1] == (3, S.QUEUED)


def test_a_requested_retry_has_the_options_that_the_run_asks_for(site: Site) -> None:
    spec = site.accept(timeout=5.0, priority=1, resources={"queue:a": 1.0})
    asked = RetryRequest(NOW, timeout=9.0, priority=4, resources={"queue:b": 1.0})
    site.running(spec).says(retry=asked)
    again = site.again(spec)
    assert (again.timeout, again.priority, again.resources) == (9.0, 4, {"queue:b": 1.0})
    site.running(again).says(retry=RetryRequest(NOW, timeout=0.0, resources={}))
    third = site.again(again)
    assert (third.timeout, third.priority, third.resources) == (None, 4, None)
