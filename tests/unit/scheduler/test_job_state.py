"""The table of jobs finds each by its id, its key and its worker."""

from __future__ import annotations

from girder_dask.jobs import JobStatus
from tests.support.dispatch_site import Site


def on_worker(site: Site, worker: str) -> set[str]:
    return {job.spec.id for job in site.jobs.on_worker(worker)}


def test_on_worker_follows_the_jobs(site: Site) -> None:
    a, b = site.accept("a"), site.accept("b")
    for spec in (a, b):
        site.place(spec, "w1")
    assert on_worker(site, "w1") == {"a", "b"}
    site.place(a, "w2")
    assert (on_worker(site, "w1"), on_worker(site, "w2")) == ({"b"}, {"a"})
    run = site.running(a, "w2")
    site.lose(a)
    assert on_worker(site, "w2") == set()
    assert not run.says(JobStatus.SUCCESS)
    site.dispatcher.on_unstarted(b.key)
    assert on_worker(site, "w1") == set()


def test_on_worker_has_a_stolen_run_where_it_reports(site: Site) -> None:
    spec = site.accept()
    site.place(spec, "w1")
    site.cluster.places[spec.key] = "w2"
    assert site.run(spec, "w2").says(JobStatus.RUNNING)
    assert (on_worker(site, "w1"), on_worker(site, "w2")) == (set(), {"a"})


def test_remove_clears_all_indices() -> None:
    site = Site()
    for job_id, verdict in (("a", "done"), ("b", "gone")):
        site.succeed(site.accept(job_id))
        site.dispatcher.on_verdict(job_id, verdict)
    jobs = site.jobs
    assert (jobs._by_id, jobs._by_key, jobs._by_worker) == ({}, {}, {})


def test_may_start_waits_until_girder_recorded_the_attempt(
    site: Site,
) -> None:
    spec = site.accept(attempt=3)
    may_start = site.jobs.may_start
    assert may_start(spec.key, 3), "Girder has given it"
    site.place(spec, "w1")
    site.lose(spec)
    assert may_start(spec.key, 3) is False
    assert may_start(spec.key, 4) is None
    site.jobs.on_recorded("a", 3)
    site.jobs.on_recorded("unknown", 4)
    assert may_start(spec.key, 4) is None
    site.jobs.on_recorded("a", 4)
    site.jobs.on_recorded("a", 3)
    assert may_start(spec.key, 4) is True
    assert may_start("unknown", 4) is False


def test_may_start_refuses_an_attempt_given_to_another_run(site: Site) -> None:
    """Another scheduler had the job in between."""
    old = site.accept()
    site.running(old)
    site.lose(old)
    new = site.accept(attempt=2)
    assert site.jobs.may_start(old.key, 2) is False
    assert site.jobs.may_start(new.key, 2) is True


def test_may_start_refuses_an_ended_job(site: Site) -> None:
    spec = site.accept()
    site.place(spec, "w1")
    site.dispatcher.cancel(["a"])
    assert site.jobs.may_start(spec.key, 1) is False
