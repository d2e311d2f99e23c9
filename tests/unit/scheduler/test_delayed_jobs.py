"""Jobs that are not to start before a time."""

from __future__ import annotations

import pytest

from girder_dask.jobs import JobStatus
from tests.support.dispatch_site import Site

NOW = 1_800_000_000.0


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site whose wall clock advances with that of its cluster."""
    site = Site()
    monkeypatch.setattr(
        "girder_dask.scheduler.job_transitions.time.time", lambda: NOW + site.cluster.now
    )
    return site


def test_start_waits_until_the_time_has_come(site: Site) -> None:
    spec = site.accept(not_before=NOW + 30)
    assert [event.is_bare for event in site.events] == [True]  # it is acknowledged
    site.cluster.advance(29)
    assert site.cluster.submitted == []
    site.cluster.advance(2)
    assert site.cluster.submitted == [spec.key]


def test_start_waits_for_longer_than_one_timer(site: Site) -> None:
    spec = site.accept(not_before=NOW + 3600)
    site.cluster.advance(3599)
    assert site.cluster.submitted == []
    site.cluster.advance(2)
    assert site.cluster.submitted == [spec.key]


def test_start_does_not_wait_for_a_time_that_has_passed(site: Site) -> None:
    spec = site.accept(not_before=NOW - 1)
    assert site.cluster.submitted == [spec.key]


def test_cancel_ends_a_delayed_job_at_once(site: Site) -> None:
    spec = site.accept(not_before=NOW + 30)
    site.dispatcher.cancel([spec.id])
    assert site.history() == [(1, JobStatus.CANCELED)]
    site.cluster.advance(60)
    assert site.cluster.submitted == []


def test_a_delayed_job_waits_for_its_dependencies_as_well(site: Site) -> None:
    first = site.accept("first")
    then = site.accept("then", dependencies=["first"], not_before=NOW + 10)
    site.cluster.advance(11)
    assert then.key not in site.cluster.submitted
    site.succeed(first)
    assert then.key in site.cluster.submitted
