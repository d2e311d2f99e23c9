"""The dispatcher turns events of runs, of Dask and of Girder into one history per job."""

from __future__ import annotations

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent
from tests.support.dispatch_site import SimulatedRun, Site

S = JobStatus
LOST = "Worker w1 was lost while the job ran; it is retried as attempt 2.\n"


@pytest.fixture
def site() -> Site:
    return Site()


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
    assert len(site.events) == 1
    assert not site.cluster.released


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


# -- lost workers --------------------------------------------------------------------------


def test_worker_lost_before_any_event_costs_an_attempt(site: Site) -> None:
    spec = site.accept()
    site.place(spec, "w1")
    site.lose(spec)
    run = site.run(spec, "w2")
    assert run.says(S.RUNNING)
    assert run.says(S.SUCCESS)
    assert site.history() == [(2, S.QUEUED), (2, S.RUNNING), (2, S.SUCCESS)]
    assert "was lost with the job; it is retried as attempt 2.\n" in site.log()


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize("leaving", [True, False])
def test_released_task_without_any_event_costs_an_attempt(
    site: Site, alive: bool, leaving: bool
) -> None:
    spec = site.accept()
    site.place(spec, "w1")
    site.cluster.places.clear()
    site.dispatcher.on_released(spec.key, "w1", alive=alive, leaving=leaving)
    assert site.history() == [(2, S.QUEUED)]
    assert site.cluster.attempts == {spec.key: 2}
    assert site.log().startswith(("Worker w1 ", "Dask took the job from worker w1;"))
    assert site.cluster.dropped_runs == [], "nobody knows its run"


def test_unstarted_task_keeps_its_attempt(site: Site) -> None:
    spec = site.accept()
    site.place(spec, "w1")
    site.dispatcher.on_unstarted(spec.key)
    site.cluster.places.clear()
    site.dispatcher.on_released(spec.key, "w1", alive=True, leaving=True)
    assert site.history() == []
    assert site.cluster.attempts == {}
    assert site.running(spec, "w2").says(S.SUCCESS)
    assert site.history() == [(1, S.RUNNING), (1, S.SUCCESS)]
    assert site.log() == ""


def test_admitted_run_is_not_unstarted(site: Site) -> None:
    spec = site.accept()
    site.running(spec, "w1")
    for key in (spec.key, "x"):
        site.dispatcher.on_unstarted(key)
    site.lose(spec)
    assert site.log() == LOST


def test_stolen_task_is_lost_with_its_last_worker(site: Site) -> None:
    spec = site.accept()
    site.place(spec, "w1")
    site.place(spec, "w2")
    site.lose(spec)
    assert site.log() == "Worker w2 was lost with the job; it is retried as attempt 2.\n"


def test_worker_lost_after_the_start_costs_an_attempt(site: Site) -> None:
    spec = site.accept()
    old = site.running(spec, "w1")
    site.lose(spec)
    assert site.history() == [(1, S.RUNNING), (2, S.QUEUED)]
    assert site.log() == LOST
    assert not old.says(log="I was only thought dead\n")
    assert not old.says(S.SUCCESS)
    new = site.run(spec, "w2")
    assert not old.says(S.SUCCESS)
    assert new.says(S.RUNNING)
    assert not old.says(S.SUCCESS)
    assert new.says(S.SUCCESS)
    assert site.history()[2:] == [(2, S.RUNNING), (2, S.SUCCESS)]
    assert site.log() == LOST


def test_next_attempt_may_run_on_the_same_worker(site: Site) -> None:
    spec = site.accept()
    old = site.running(spec, "w1")
    site.lose(spec)
    new = site.run(spec, "w1")
    assert not old.says(S.SUCCESS)
    assert new.says(S.RUNNING)
    assert site.history()[-1] == (2, S.RUNNING)


def test_lost_worker_is_no_failed_try(site: Site) -> None:
    spec = site.accept(retries=1)
    site.running(spec, "w1")
    site.lose(spec)
    run = site.running(spec, "w2")
    assert run.says(S.ERROR, error="no")
    assert site.history()[-1] == (3, S.QUEUED)


def test_failed_job_names_its_lost_workers(site: Site) -> None:
    spec = site.accept()
    for worker in ("w1", "w2"):
        site.running(spec, worker)
        site.lose(spec)
    site.dispatcher.on_failed(spec.key, "The task was lost.")
    assert site.history()[-1] == (3, S.ERROR)
    assert site.events[-1].error == "The task was lost. Workers lost: w1, w2."
    assert site.log().endswith("The task was lost. Workers lost: w1, w2.\n")


def test_loss_reason_is_logged_once_known(site: Site) -> None:
    spec = site.accept()
    site.running(spec, "w1")
    site.cluster.reasons["w1"] = "it was full"
    site.lose(spec)
    assert site.log() == LOST.replace("ran;", "ran (it was full);")
    site.running(spec, "w2")
    site.lose(spec)
    site.cluster.reasons["w2"] = "it was silent"
    site.dispatcher.on_loss_explained("w1")
    site.dispatcher.on_loss_explained("w2")
    assert site.log().endswith("retried as attempt 3.\nWorker w2: it was silent.\n")
    site.running(spec, "w3")
    site.dispatcher.on_failed(spec.key, "The task was lost.", lost_worker="w3")
    told = "The task was lost. Workers lost: w1 (it was full), w2 (it was silent), w3."
    assert site.events[-1].error == told
    site.dispatcher.on_loss_explained("w3")
    assert site.log().endswith(f"{told}\n")


def test_failed_job_names_workers_lost_before_the_start(site: Site) -> None:
    spec = site.accept()
    for worker in ("w1", "w2"):
        site.place(spec, worker)
        site.lose(spec)
    site.dispatcher.on_failed(spec.key, "The task was lost.", lost_worker="w3")
    assert site.events[-1].error == "The task was lost. Workers lost: w1, w2, w3."


def test_next_attempt_is_set_for_the_next_run(site: Site) -> None:
    spec = site.accept()
    for attempt in (2, 3):
        site.running(spec)
        site.lose(spec)
        assert site.cluster.attempts == {spec.key: attempt}


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


# -- retries -------------------------------------------------------------------------------

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


# -- canceling -----------------------------------------------------------------------------


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
