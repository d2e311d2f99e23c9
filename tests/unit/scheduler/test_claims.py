"""The scheduler's jobs are compared with Girder's list."""

from __future__ import annotations

import pytest

from girder_dask.scheduler.claims import GirderReconciler


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


def test_girder_without_pages_is_told_nothing(site: Site) -> None:
    site.reconciler.on_page(None)
    assert (site.reconciler.page_after, site.lacking()) == ("", [])
