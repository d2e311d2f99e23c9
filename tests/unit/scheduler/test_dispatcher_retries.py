"""The dispatcher retries runs that raised."""

from __future__ import annotations

from girder_dask.jobs import JobStatus
from tests.support.dispatch_site import Site

S = JobStatus

FAILED = "Try 1 of 2 failed; the job is retried in 1 s as attempt 2.\n"


def test_raised_run_is_retried_after_a_delay(site: Site) -> None:
    spec = site.accept(retries=1, payload=b"call")
    old = site.running(spec)
    assert old.says(S.ERROR, log="Traceback\n", error="ValueError: no", exception=b"e")
    assert site.cluster.released == [spec.key]
    site.cluster.advance(0.9)
    assert site.cluster.submitted == [spec.key]
    site.cluster.advance(0.1)
    assert site.cluster.submitted == [spec.key, "count-a-2"]
    again = site.again(spec)
    assert (again.attempt, again.payload) == (2, b"call")
    new = site.running(again)
    assert not old.says(log="late\n")
    assert new.says(S.SUCCESS)
    assert site.history() == [(1, S.RUNNING), (2, S.QUEUED), (2, S.RUNNING), (2, S.SUCCESS)]
    assert site.log() == "Traceback\n" + FAILED
    assert [e for e in site.events if e.error or e.exception] == []
    assert next(e.attempt for e in site.events if e.log == "Traceback\n") == 1


def test_permanent_error_is_not_retried(site: Site) -> None:
    spec = site.accept(retries=3)
    assert site.running(spec).says(S.ERROR, error="TransformError: no file", permanent=True)
    site.dispatcher.on_failed(spec.key, "Dask says so too", raised=True)
    site.cluster.advance(100)
    assert site.history() == [(1, S.RUNNING), (1, S.ERROR)]
    assert site.cluster.submitted == [spec.key]


def test_events_of_dask_for_a_failed_try_do_not_affect_the_next(site: Site) -> None:
    spec = site.accept(retries=1)
    old = site.running(spec)
    site.end(spec, "w1", None)
    assert old.says(S.ERROR, error="ValueError: no")
    assert not site.jobs.is_open(spec.key)
    for _ in range(2):
        site.dispatcher.on_finished(spec.key, "w1")
        site.dispatcher.on_failed(spec.key, "Dask could not run the task", raised=True)
        site.dispatcher.on_forgotten(spec.key)
        site.dispatcher.on_released(spec.key, "w1", alive=True)
        site.cluster.advance(1)
    assert site.history() == [(1, S.RUNNING), (2, S.QUEUED)]
    assert site.cluster.submitted == [spec.key, "count-a-2"]


def test_retry_delays_double_up_to_a_limit(site: Site) -> None:
    spec = site.accept(retries=8)
    pauses = []
    for _ in range(8):
        site.running(site.again(spec)).says(S.ERROR, error="no")
        due = site.cluster.next_time()
        assert due is not None
        pauses.append(due - site.cluster.now)
        site.cluster.advance(pauses[-1])
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert "Try 7 of 9 failed; the job is retried in 60 s as attempt 8.\n" in site.log()


def test_last_failed_try_ends_the_job(site: Site) -> None:
    spec = site.accept(retries=2)
    for _ in range(2):
        site.running(site.again(spec)).says(S.ERROR, log="Traceback\n", error="ValueError: no")
        site.cluster.advance(60)
    last = site.again(spec)
    assert site.running(last).says(
        S.ERROR, log="Traceback\n", error="ValueError: no", exception=b"e"
    )
    site.dispatcher.on_failed(last.key, "Dask could not run the task", raised=True)
    assert site.history()[-2:] == [(3, S.RUNNING), (3, S.ERROR)]
    assert (site.events[-1].error, site.events[-1].exception) == ("ValueError: no", b"e")
    assert site.log().count("Traceback\n") == 3
    assert "Try 2 of 3 failed; the job is retried in 2 s as attempt 3.\n" in site.log()
    assert site.cluster.next_time() is None


def test_only_an_error_keeps_its_exception(site: Site) -> None:
    site.running(site.accept()).says(S.SUCCESS, exception=b"e")
    assert site.events[-1].exception is None


def test_raised_run_that_only_dask_reports_is_retried(site: Site) -> None:
    spec = site.accept(retries=1)
    site.running(spec)
    site.end(spec, "w1", None)
    site.dispatcher.on_failed(spec.key, "Dask could not run the task: no", raised=True)
    assert site.history() == [(1, S.RUNNING), (2, S.QUEUED)]
    assert site.log() == "Dask could not run the task: no\n" + FAILED
    site.cluster.advance(1)
    site.dispatcher.on_failed("count-a-2", "The task was lost")
    assert site.history()[-1] == (2, S.ERROR)


def test_worker_lost_after_a_failed_try_costs_one_attempt_more(site: Site) -> None:
    spec = site.accept(retries=1)
    site.running(spec, "w1").says(S.ERROR, error="no")
    site.cluster.advance(1)
    again = site.again(spec)
    site.running(again, "w2")
    site.lose(again)
    assert site.running(again, "w3").says(S.SUCCESS)
    assert site.history()[-4:] == [(2, S.RUNNING), (3, S.QUEUED), (3, S.RUNNING), (3, S.SUCCESS)]
