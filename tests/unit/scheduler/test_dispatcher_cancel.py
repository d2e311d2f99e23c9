"""The dispatcher cancels jobs, whatever they are doing."""

from __future__ import annotations

import pytest

from girder_dask.jobs import JobStatus
from tests.support.dispatch_site import Site

S = JobStatus


def test_cancel_ends_a_waiting_job_at_once(site: Site) -> None:
    spec = site.accept()
    site.dispatcher.cancel(["a", "unknown"])
    assert site.history() == [(1, S.CANCELED)]
    assert site.cluster.released == [spec.key]
    assert site.cluster.stopped == []
    assert not site.run(spec).says(S.RUNNING)


def test_cancel_ends_an_assigned_job_once_its_worker_has_not_started_it(
    site: Site,
) -> None:
    spec = site.accept()
    site.place(spec, "w1")
    site.dispatcher.cancel(["a"])
    assert site.cluster.stopped == [("w1", spec.key)]
    assert site.history() == []
    assert site.dispatcher.undecided(["a"]) == ["a"]
    assert site.dispatcher.started(["a"]) == {"a": 1}
    site.cluster.answer("w1", spec.key)
    assert site.history() == [(1, S.CANCELED)]
    assert site.dispatcher.undecided(["a"]) == []
    assert site.dispatcher.started(["a"]) == {}
    assert site.cluster.released == [spec.key]


def test_cancel_ends_a_job_whose_start_was_unreported_with_its_run(
    site: Site,
) -> None:
    run = site.run(site.accept())
    site.dispatcher.cancel(["a"])
    assert run.says(S.RUNNING)
    assert site.dispatcher.undecided(["a"]) == []
    assert site.dispatcher.started(["a"]) == {"a": 1}
    assert run.says(S.CANCELED)
    assert site.history() == [(1, S.RUNNING), (1, S.CANCELED)]


def test_cancel_does_not_change_an_unreported_end(site: Site) -> None:
    spec = site.accept()
    run = site.run(spec)
    site.end(spec, "w1")
    site.dispatcher.cancel(["a"])
    assert run.says(S.RUNNING)
    assert run.says(S.SUCCESS)
    assert site.history() == [(1, S.RUNNING), (1, S.SUCCESS)]


def test_cancel_follows_a_job_that_dask_moved(site: Site) -> None:
    spec = site.accept()
    site.place(spec, "w1")
    site.dispatcher.cancel(["a"])
    site.place(spec, "w2")
    site.cluster.answer("w1", spec.key)
    assert site.history() == []
    assert site.cluster.stopped == [("w1", spec.key), ("w2", spec.key)]
    site.cluster.answer("w2", spec.key)
    assert site.history() == [(1, S.CANCELED)]


def test_cancel_before_the_arrival_prevents_the_run(site: Site) -> None:
    site.dispatcher.cancel(["a"])
    site.accept()
    assert site.history() == [(1, S.CANCELED)]
    assert site.cluster.submitted == []
    site.accept("b")
    assert len(site.cluster.submitted) == 1


def test_cancel_asks_each_worker_once(site: Site) -> None:
    specs = [site.accept(job_id) for job_id in "abc"]
    for spec, worker in zip(specs, ("w1", "w2", "w1"), strict=True):
        site.place(spec, worker)
    site.dispatcher.cancel("abc")
    a, b, c = (spec.key for spec in specs)
    assert site.cluster.stopped == [("w1", a), ("w1", c), ("w2", b)]


def test_cancel_ends_a_running_job_with_its_run(site: Site) -> None:
    spec = site.accept()
    run = site.running(spec)
    site.dispatcher.cancel(["a"])
    assert site.cluster.stopped == [("w1", spec.key)]
    assert site.dispatcher.started(["a"]) == {"a": 1}
    assert site.cluster.released == []
    assert site.history() == [(1, S.RUNNING)]
    assert run.says(S.CANCELED, log="stopped\n")
    assert site.history() == [(1, S.RUNNING), (1, S.CANCELED)]


def test_cancel_does_not_change_the_end_of_a_run(site: Site) -> None:
    run = site.running(site.accept())
    site.dispatcher.cancel(["a"])
    run.says(S.SUCCESS)
    assert site.history()[-1] == (1, S.SUCCESS)
    site.dispatcher.cancel(["a"])
    assert len(site.cluster.stopped) == 1


def test_canceled_job_ends_with_its_lost_worker(site: Site) -> None:
    spec = site.accept()
    run = site.running(spec)
    site.dispatcher.cancel(["a"])
    site.lose(spec)
    assert site.history() == [(1, S.RUNNING), (1, S.CANCELED)]
    assert site.cluster.released == [spec.key]
    assert not run.says(S.SUCCESS)


@pytest.mark.parametrize("end", [S.CANCELED, S.ERROR])
@pytest.mark.parametrize("dask_first", [True, False])
def test_canceled_job_is_not_retried(site: Site, end: JobStatus, dask_first: bool) -> None:
    """Dask has tries left, and does not know that the run did not just fail."""
    spec = site.accept(retries=2)
    run = site.running(spec)
    site.dispatcher.cancel(["a"])
    if dask_first:
        site.lose(spec, alive=True)
    run.says(end)
    if not dask_first:
        site.lose(spec, alive=True)
    assert site.history() == [(1, S.RUNNING), (1, end)]
    assert spec.key in site.cluster.released


def test_canceled_job_between_two_tries_does_not_run_again(site: Site) -> None:
    spec = site.accept(retries=1)
    site.running(spec).says(S.ERROR, error="ValueError: no")
    site.dispatcher.cancel(["a"])
    assert site.history() == [(1, S.RUNNING), (2, S.QUEUED), (2, S.CANCELED)]
    assert site.cluster.next_time() is None
    site.cluster.advance(10)
    assert site.cluster.submitted == [spec.key]


@pytest.mark.parametrize("what", ["failed", "forgotten"])
def test_canceled_job_that_dask_gives_up_is_canceled(site: Site, what: str) -> None:
    spec = site.accept()
    site.running(spec)
    site.dispatcher.cancel(["a"])
    if what == "failed":
        site.dispatcher.on_failed(spec.key, "Dask could not run the task")
    else:
        site.dispatcher.on_forgotten(spec.key)
    assert site.history() == [(1, S.RUNNING), (1, S.CANCELED)]
    assert len(site.cluster.submitted) == 1
