"""The scheduler's jobs are compared with Girder's list."""

from __future__ import annotations

import time

import pytest

from girder_dask.jobs import JobStatus as S
from girder_dask.protocol.messages import JobSpec
from girder_dask.scheduler.claims import GirderReconciler
from girder_dask.scheduler.job_state import JobTable


class Site:
    """A Girder, a scheduler and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.here = {"a", "b", "c", "d", "e"}
        self.there = ["a", "b", "c", "d", "e"]
        self.reconciler = GirderReconciler(
            self.here,  # type: ignore[arg-type]
            interval_s=60.0,
            clock=lambda: self.now,
        )

    def lacking(self) -> list[str]:
        return [
            job_id for job_id, attempt, sequence in self.reconciler.missing() if attempt < sequence
        ]

    def pull(self) -> tuple[str | None, list[str]]:
        """Ask Girder as the scheduler does. Return what was asked and what was told."""
        after, lacking = self.reconciler.page_after, self.lacking()
        page = None if after is None else [(i, 1, 7) for i in self.there if i > after][:2]
        self.reconciler.on_page(page)
        return after, lacking


@pytest.fixture
def site() -> Site:
    return Site()


def test_girder_round_pages_through_all_jobs_then_pauses(site: Site) -> None:
    assert [site.pull()[0] for _ in range(6)] == ["", "b", "d", "e", None, None]
    site.now = 59.9
    assert site.pull()[0] is None
    site.now = 60.0
    assert [site.pull()[0] for _ in range(2)] == ["", "b"]


def test_girder_is_told_once_of_missing_jobs(site: Site) -> None:
    site.here -= {"b", "d"}
    assert [site.pull()[1] for _ in range(6)] == [[], ["b"], ["d"], [], [], []]


def test_girder_is_not_told_of_jobs_that_arrived_meanwhile(site: Site) -> None:
    site.here.discard("a")
    site.pull()
    assert site.lacking() == ["a"]
    site.here.add("a")
    assert site.pull()[1] == []


def test_girder_is_asked_for_the_same_page_without_an_answer(site: Site) -> None:
    site.here.discard("a")
    site.pull()
    assert (site.reconciler.page_after, site.lacking()) == ("b", ["a"])
    assert site.pull() == ("b", ["a"])


def test_jobs_whose_state_girder_has_lost_are_found() -> None:
    jobs = JobTable()
    states = {"runs": S.RUNNING, "confirmed": S.RUNNING, "waits": S.QUEUED, "retried": S.QUEUED}
    for job_id, status in states.items():
        jobs.add(JobSpec(id=job_id, attempt=1, task="m:f")).status = status
    reconciler = GirderReconciler(jobs, interval_s=60.0)
    reconciler.on_page([(job_id, 1, 0) for job_id in [*states, "not here"]])
    asked_at = time.monotonic()
    jobs.on_recorded("confirmed", 1)  # after Girder had read its answer
    found = reconciler.outdated([S.QUEUED, S.QUEUED, S.QUEUED, S.RUNNING, S.RUNNING], asked_at)
    assert [job.spec.id for job in found] == ["runs", "retried"]
    assert reconciler.outdated([S.RUNNING, S.RUNNING, S.QUEUED, S.QUEUED, S.QUEUED], asked_at) == []
    assert reconciler.outdated([], asked_at) == []  # a Girder that sends none


def test_running_job_that_girder_does_not_list_is_found_at_the_end_of_a_round() -> None:
    jobs = JobTable()
    for job_id in ("a", "b", "new"):
        jobs.add(JobSpec(id=job_id, attempt=1, task="m:f")).run = "run"
    jobs.get("a").recorded_at = jobs.get("b").recorded_at = 1.0  # type: ignore[union-attr]
    reconciler = GirderReconciler(jobs, interval_s=0.0)
    for _ in range(2):  # rounds
        reconciler.on_page([("a", 1, 0)])
        assert reconciler.outdated([S.QUEUED], 2.0) == []
        reconciler.on_page([])
        assert [job.spec.id for job in reconciler.outdated([], 3.0)] == ["b"]


def test_girder_without_pages_is_told_nothing(site: Site) -> None:
    site.reconciler.on_page(None)
    assert (site.reconciler.page_after, site.lacking()) == ("", [])
