"""The dispatcher turns events of runs, of Dask and of Girder into one history per job."""

from __future__ import annotations

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent
from tests.support.dispatch_site import SimulatedRun, Site

S = JobStatus


# -- accepting -----------------------------------------------------------------------------


def test_accept_submits_and_acknowledges(site: Site) -> None:
    spec = site.accept()
    assert site.cluster.submitted == [spec.key]
    assert [(e.id, e.attempt, e.status, e.log) for e in site.events] == [("a", 1, None, None)]
    assert spec.key in site.dispatcher
    assert len(site.jobs) == 1


def test_accept_ignores_jobs_that_it_has(site: Site) -> None:
    spec = site.accept(attempt=2)
    assert site.dispatcher.accept([spec, spec]) == ["a", "a"]
    site.accept(attempt=1)
    assert site.cluster.submitted == [spec.key]
    # Girder asks again because it does not know that the job is here.
    assert [(event.attempt, event.is_bare) for event in site.events] == 4 * [(2, True)]
    assert not site.cluster.released


def test_accept_reports_again_that_a_job_runs(site: Site) -> None:
    spec = site.accept()
    run = site.running(spec)
    del site.events[:]
    site.dispatcher.accept([spec])
    assert [(event.attempt, event.status) for event in site.events] == [(1, S.RUNNING)]
    run.says(S.SUCCESS)
    del site.events[:]
    site.dispatcher.accept([spec])
    assert site.events == []


def test_accept_ignores_a_job_that_has_just_ended(site: Site) -> None:
    spec = site.accept()
    site.succeed(spec)
    site.dispatcher.on_verdict("a", "done")
    assert "a" not in site.jobs
    # Girder had sent it once more before it heard of the end.
    assert site.dispatcher.accept([spec]) == ["a"]
    assert site.cluster.submitted == [spec.key]
    # Another attempt is another matter, and so is what Girder still says after a while.
    site.accept(attempt=2)
    assert len(site.cluster.submitted) == 2
    other = site.accept("b")
    site.running(other).says(S.ERROR)
    site.dispatcher.on_verdict("b", "done")
    site.cluster.advance(61)
    site.cluster.submitted.remove(other.key)
    site.dispatcher.accept([other])
    assert "b" in site.jobs


def test_accept_replaces_a_job_by_its_higher_attempt(site: Site) -> None:
    old = site.accept(attempt=1)
    run = site.running(old)
    new = site.accept(attempt=2)
    assert site.cluster.submitted == [old.key, new.key]
    assert site.cluster.released == [old.key]
    assert site.forgotten == [("a", 1)]
    assert not run.says(S.SUCCESS)
    assert len(site.jobs) == 1
    assert site.history()[-1] == (1, S.RUNNING)


def test_run_of_an_old_attempt_is_not_admitted_on_the_same_worker(
    site: Site,
) -> None:
    old_run = site.running(site.accept(attempt=1), "w1")
    new = site.accept(attempt=2)
    new_run = site.run(new, "w1")
    assert not old_run.says(S.CANCELED)
    assert new_run.says(S.RUNNING)
    assert new_run.says(S.SUCCESS, result=b"new")
    assert site.history() == [(1, S.RUNNING), (2, S.RUNNING), (2, S.SUCCESS)]


def test_events_of_different_jobs_do_not_mix(site: Site) -> None:
    a, b = site.accept("a"), site.accept("b")
    run_a, run_b = site.running(a), site.running(b)
    run_a.says(S.SUCCESS)
    run_b.says(S.ERROR, error="no")
    assert site.history("a") == [(1, S.RUNNING), (1, S.SUCCESS)]
    assert site.history("b") == [(1, S.RUNNING), (1, S.ERROR)]


# -- runs ----------------------------------------------------------------------------------


def test_run_is_admitted_on_the_assigned_worker(site: Site) -> None:
    spec = site.accept()
    run = site.run(spec)
    assert run.says(S.FETCHING_INPUT)
    assert run.says(log="half way\n", progress={"current": 1})
    assert run.says(S.SUCCESS, result=b"r", log="done\n")
    assert site.history() == [(1, S.FETCHING_INPUT), (1, S.SUCCESS)]
    assert site.log() == "half way\ndone\n"
    assert site.events[-1].result == b"r"
    assert not site.jobs.is_open(spec.key)


def test_run_on_another_worker_is_not_admitted(site: Site) -> None:
    spec = site.accept()
    site.place(spec, "w1")
    assert not SimulatedRun(site, spec, "w2").says(S.RUNNING)
    assert site.history() == []


def test_run_is_not_admitted_before_the_assignment(site: Site) -> None:
    assert not SimulatedRun(site, site.accept(), "w1").says(S.RUNNING)
    assert site.history() == []


def test_second_run_is_not_admitted(site: Site) -> None:
    spec = site.accept()
    site.running(spec)
    assert not SimulatedRun(site, spec, "w1").says(S.ERROR, error="no")
    assert site.history() == [(1, S.RUNNING)]


def test_event_of_no_run_is_dropped(site: Site) -> None:
    spec = site.accept()
    site.place(spec, "w1")
    event = JobEvent(id="a", attempt=1, time=1.0, status=int(S.SUCCESS), worker="w1")
    assert not site.dispatcher.on_run_event(event)
    assert not site.dispatcher.on_run_event(
        JobEvent(id="z", attempt=1, time=1.0, run="r", worker="w1")
    )


def test_events_after_the_end_are_dropped(site: Site) -> None:
    run = site.running(site.accept())
    run.says(S.SUCCESS)
    assert not run.says(log="late\n")
    assert not run.says(S.ERROR)
    assert site.history() == [(1, S.RUNNING), (1, S.SUCCESS)]


def test_stolen_run_is_admitted_on_the_worker_where_it_finished(site: Site) -> None:
    """Dask moves it without a word, and knows of its end before its account arrives."""
    spec = site.accept()
    site.place(spec, "w1")
    run = SimulatedRun(site, spec, "w2")
    site.end(spec, "w2")
    assert run.says(S.RUNNING)
    assert run.says(S.SUCCESS)
    assert site.history() == [(1, S.RUNNING), (1, S.SUCCESS)]


# -- what Dask gives up --------------------------------------------------------------------


def test_on_failed_ends_the_job_with_its_reason(site: Site) -> None:
    spec = site.accept()
    site.dispatcher.on_failed(spec.key, "Dask could not run the task: no worker")
    assert site.history() == [(1, S.ERROR)]
    assert site.log() == "Dask could not run the task: no worker\n"
    assert site.events[-1].error == "Dask could not run the task: no worker"
    site.dispatcher.on_failed(spec.key, "again")
    assert len(site.history()) == 1


def test_events_of_dask_after_the_reported_end_are_ignored(site: Site) -> None:
    spec = site.accept()
    site.running(spec).says(S.ERROR, error="ValueError: no")
    site.dispatcher.on_failed(spec.key, "Dask could not run the task")
    site.dispatcher.on_forgotten(spec.key)
    site.dispatcher.on_finished(spec.key, "w1")
    site.lose(spec)
    assert site.history() == [(1, S.RUNNING), (1, S.ERROR)]
    assert site.cluster.submitted == [spec.key]


def test_keys_of_other_clients_are_ignored(site: Site) -> None:
    assert "x" not in site.dispatcher
    assert not site.jobs.is_open("x")
    for tell in (site.dispatcher.on_forgotten,):
        tell("x")
    site.dispatcher.on_failed("x", "no")
    site.dispatcher.on_finished("x", None)
    site.dispatcher.on_released("x", None, alive=False)
    assert site.events == []


def test_on_forgotten_submits_under_another_key(site: Site) -> None:
    spec = site.accept(payload=b"call")
    old = site.running(spec)
    assert site.jobs.is_open(spec.key)
    site.dispatcher.on_forgotten(spec.key)
    assert site.cluster.submitted == [spec.key, "count-a-2"]
    assert site.cluster.released == [spec.key], (
        "its value may be there, when only Dask told its end"
    )
    again = site.cluster.specs["count-a-2"]
    assert (again.attempt, again.payload) == (2, b"call")
    assert spec.key not in site.dispatcher
    assert not old.says(S.SUCCESS)
    run = site.running(again, "w2")
    assert run.says(S.SUCCESS)
    assert site.history() == [(1, S.RUNNING), (2, S.QUEUED), (2, S.RUNNING), (2, S.SUCCESS)]


def test_on_forgotten_gives_up_after_several_times(site: Site) -> None:
    spec = site.accept()
    for _ in range(5):
        site.dispatcher.on_forgotten(site.again(spec).key)
    assert site.history()[-1] == (6, S.QUEUED)
    site.dispatcher.on_forgotten(site.again(spec).key)
    assert site.history()[-1] == (6, S.ERROR)
    assert len(site.cluster.submitted) == 6
    assert "Dask forgot the task 6 times" in (site.events[-1].error or "")


def test_released_then_forgotten_task_costs_one_attempt(site: Site) -> None:
    """As when the value of an input is lost while it is brought to the worker."""
    spec = site.accept()
    site.running(spec)
    site.lose(spec, alive=True)
    site.dispatcher.on_forgotten(spec.key)
    assert site.history() == [(1, S.RUNNING), (2, S.QUEUED)]
    assert site.log() == ("Dask took the job from worker w1; it is retried as attempt 2.\n")
    assert site.cluster.submitted == [spec.key, "count-a-2"]


def test_forgotten_unreported_run_keeps_its_attempt_number(site: Site) -> None:
    """The worker of the first run is lost, then that of the second, with the value."""
    spec = site.accept()
    site.running(spec)
    site.lose(spec)
    site.place(spec, "w2")
    site.end(spec, "w2")
    site.dispatcher.on_forgotten(spec.key)
    assert site.cluster.attempts == {spec.key: 0}, "of the old key no run begins"
    assert site.cluster.submitted == [spec.key, "count-a-3"]
    assert site.history() == [(1, S.RUNNING), (2, S.QUEUED), (3, S.QUEUED)]


def test_unreported_run_is_not_admitted_in_the_next_attempt(site: Site) -> None:
    spec = site.accept()
    silent = site.run(spec, "w1")
    site.cluster.places.clear()
    site.dispatcher.on_forgotten(spec.key)
    again = site.cluster.specs["count-a-2"]
    site.place(again, "w1")
    assert not silent.says(S.SUCCESS)
    assert site.history() == [(2, S.QUEUED)]


# -- what Girder says ----------------------------------------------------------------------


def test_job_is_kept_until_girder_acknowledged_its_end(site: Site) -> None:
    spec = site.accept()
    site.dispatcher.on_verdict("a", "done")
    assert len(site.jobs) == 1, "its end is not told yet"
    site.succeed(spec)
    assert len(site.jobs) == 1
    site.dispatcher.on_verdict("a", "done")
    assert len(site.jobs) == 0
    assert spec.key not in site.dispatcher
    assert site.forgotten == [("a", 1)]
    site.dispatcher.on_verdict("a", "done")


def test_job_is_kept_until_dask_reported_its_end_too(site: Site) -> None:
    """Else Dask would run it again, if its worker is lost before."""
    spec = site.accept()
    site.running(spec).says(S.SUCCESS)
    site.dispatcher.on_verdict("a", "done")
    assert len(site.jobs) == 1
    site.lose(spec)
    assert site.cluster.released == [spec.key]
    assert site.history() == [(1, S.RUNNING), (1, S.SUCCESS)]
    assert len(site.jobs) == 0


@pytest.mark.parametrize("kind", ["stale", "gone"])
def test_stale_or_deleted_job_is_stopped_and_removed(site: Site, kind: str) -> None:
    spec = site.accept()
    run = site.running(spec)
    said = len(site.events)
    site.dispatcher.on_verdict("a", kind)
    assert site.cluster.stopped == [("w1", spec.key)]
    site.cluster.answer("w1", spec.key)
    assert site.cluster.released == [spec.key]
    assert site.forgotten == [("a", 1)]
    assert len(site.jobs) == 0
    assert not run.says(S.SUCCESS)
    assert len(site.events) == said


def test_cancel_verdict_stops_the_run(site: Site) -> None:
    spec = site.accept()
    site.running(spec)
    site.dispatcher.on_verdict("a", "cancel")
    site.dispatcher.on_verdict("unknown", "cancel")
    assert site.cluster.stopped == [("w1", spec.key)]


def test_recorder_forgets_the_last_attempt(site: Site) -> None:
    spec = site.accept()
    site.running(spec)
    site.lose(spec)
    site.running(spec, "w2").says(S.SUCCESS)
    site.end(spec, "w2")
    site.dispatcher.on_verdict("a", "done")
    assert site.forgotten == [("a", 2)]
