"""The dispatcher begins another attempt when a worker is lost."""

from __future__ import annotations

import pytest

from girder_dask.jobs import JobStatus
from tests.support.dispatch_site import Site

S = JobStatus
LOST = "Worker w1 was lost while the job ran; it is retried as attempt 2.\n"


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
