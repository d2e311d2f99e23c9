"""Reasons why jobs are pending."""

from __future__ import annotations

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobSpec
from girder_dask.scheduler.pending_reasons import _MAX_REPORTS_PER_SCAN
from tests.support.dispatch_site import Site

NONE = "no worker is there"
GPU = "none has a GPU"


def told(site: Site, job_id: str = "a") -> list[str]:
    return [
        e.pending_reason for e in site.events if e.id == job_id and e.pending_reason is not None
    ]


def look(site: Site, seconds: float = 0.0) -> None:
    site.cluster.now += seconds
    site.pending.scan()


def lack(site: Site, spec: JobSpec, reason: str = NONE) -> JobSpec:
    site.cluster.lacking[spec.key] = reason
    return spec


def test_scan_reports_a_lasting_reason_once() -> None:
    site = Site()
    lack(site, site.accept())
    look(site)
    look(site, 1.9)
    assert told(site) == []
    look(site, 0.2)
    look(site, 5)
    assert told(site) == [NONE]


def test_scan_does_not_report_a_short_reason() -> None:
    site = Site()
    spec = lack(site, site.accept())
    look(site)
    del site.cluster.lacking[spec.key]
    look(site, 1)
    lack(site, spec)
    look(site, 1.9)
    look(site, 1.9)
    assert told(site) == []


def test_scan_reports_the_end_of_a_reason_at_once() -> None:
    site = Site()
    spec = lack(site, site.accept())
    look(site)
    look(site, 3)
    site.cluster.lacking.clear()
    site.place(spec, "w1")
    look(site)
    look(site)
    assert told(site) == [NONE, ""]


def test_scan_reports_another_reason_once_it_lasted() -> None:
    site = Site()
    spec = lack(site, site.accept())
    look(site)
    look(site, 3)
    lack(site, spec, GPU)
    look(site)
    look(site, 1.9)
    assert told(site) == [NONE]
    look(site, 0.2)
    assert told(site) == [NONE, GPU]


def test_scan_reports_nothing_of_a_running_job() -> None:
    """That it runs says that it waits no more."""
    site = Site()
    spec = lack(site, site.accept())
    look(site)
    look(site, 3)
    site.cluster.lacking.clear()
    site.running(spec)
    look(site)
    assert told(site) == [NONE]


def test_scan_begins_anew_with_the_next_attempt() -> None:
    site = Site()
    spec = lack(site, site.accept())
    look(site)
    look(site, 3)
    site.cluster.lacking.clear()
    site.running(spec)
    site.lose(spec)
    lack(site, spec)
    look(site)
    look(site, 3)
    assert told(site) == [NONE, NONE]
    assert [e.attempt for e in site.events if e.pending_reason] == [1, 2]


def test_scan_reports_nothing_of_a_removed_job() -> None:
    site = Site()
    for job_id, verdict in (("a", "gone"), ("b", "stale")):
        lack(site, site.accept(job_id))
        look(site)
        look(site, 3)
        site.dispatcher.on_verdict(job_id, verdict)
    lack(site, site.accept("c"))
    look(site)
    look(site, 3)
    site.dispatcher.cancel(["c"])
    events = len(site.events)
    look(site)
    look(site, 3)
    assert len(site.events) == events


def test_scan_reports_dependencies() -> None:
    site = Site()
    first = site.accept("a", title="Count")
    site.accept("b", dependencies=["a"])
    site.accept("c", dependencies=["a", "b"])
    look(site)
    look(site, 3)
    assert told(site) == []
    assert told(site, "b") == ["it needs the value of job a ('Count'), which has not ended"]
    assert told(site, "c") == ["it needs the values of 2 other jobs, which have not all ended"]
    site.succeed(first)
    look(site)
    assert told(site, "b")[1:] == [""]
    assert told(site, "c")[1:] == []


def test_scan_reports_nothing_between_two_tries() -> None:
    site = Site()
    spec = site.accept("a", retries=1)
    site.running(spec).says(JobStatus.ERROR, error="no")
    look(site)
    look(site, 3)
    assert told(site) == []


def test_scan_fails_a_job_after_the_timeout() -> None:
    site = Site()
    spec = lack(site, site.accept("a"))
    blocked = site.accept("b", dependencies=["elsewhere"])
    site.pending.timeout_s = 10
    look(site)
    look(site, 9)
    lack(site, spec, GPU)  # it lacks a worker all the same
    look(site)
    look(site, 0.9)
    assert site.history() == []
    look(site, 0.2)
    assert site.history() == [(1, JobStatus.ERROR)]
    (error,) = [e.error for e in site.events if e.error]
    assert error.startswith(f"No worker could run this job for 10 s: {GPU}. ")
    assert "girder.scheduler.no-worker-timeout" in error
    look(site, 100)
    assert site.history("b") == [], "it needs no worker yet"
    assert blocked.id in site.jobs


def test_scan_restarts_the_timeout_when_a_worker_was_there() -> None:
    site = Site()
    spec = lack(site, site.accept("a"))
    site.pending.timeout_s = 10
    look(site)
    look(site, 9)
    site.cluster.lacking.clear()
    look(site)
    lack(site, spec)
    look(site)
    look(site, 9)
    assert site.history() == []
    look(site, 1)
    assert site.history() == [(1, JobStatus.ERROR)]


def test_scan_reports_a_long_queue_in_parts() -> None:
    site = Site()
    number = 2 * _MAX_REPORTS_PER_SCAN + 10
    for n in range(number):
        lack(site, site.accept(str(n)))
    look(site)
    counts = []
    for _ in range(4):
        before = len(site.events)
        look(site, 3)
        counts.append(len(site.events) - before)
    assert counts == [_MAX_REPORTS_PER_SCAN, _MAX_REPORTS_PER_SCAN, 10, 0]
    assert site.pending.scan() >= 0.5
