"""girder_worker's tasks when parts are killed, and when jobs are canceled meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask.jobs import FINAL, JobStatus, waits_for
from tests.support.celery_site import CelerySite, wait_until
from tests.support.connected_workers import connected_workers
from tests.support.outage_site import JournaledStack, killed, stopped

# Workers repeat requests after up to 15 s, for each that a busy Girder has not answered.
LONG_S = 180


class Site(CelerySite, JournaledStack):
    """A site with the switch, whose parts can be killed."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    # An outage ends for the scheduler soon after it has ended.
    env = {
        "DASK_GIRDER__SCHEDULER__PULL_INTERVAL": "1s",
        "DASK_GIRDER__SCHEDULER__RETRY_DELAY_MAX": "1s",
        "DASK_GIRDER__SCHEDULER__REQUEST_TIMEOUT": "5s",
    }
    with Site(tmp_path_factory.mktemp("celery_losses"), env=env) as site:
        yield site


def restart_cluster(site: Site, *killed: str) -> None:
    """Kill parts, end the workers with their scheduler, and start all again."""
    for name in killed:
        site.kill(name)
    site.restart(*killed)


def test_waiting_jobs_outlive_the_scheduler_and_retries_count_on(site: Site) -> None:
    retried = site.delay("tries_again", 2, 8.0)
    wait_until(lambda: "asks to be tried again" in site.log(retried), 60)
    delayed = site.delay("add", 20, 22, countdown=8)
    assert waits_for(site.job(delayed))
    restart_cluster(site, "worker-0", "scheduler")
    site.wait(delayed, 60, status=JobStatus.SUCCESS)
    site.wait(retried, 60, status=JobStatus.SUCCESS)
    assert site.value(delayed) == 42
    assert site.value(retried) == 2
    tries = [line for line in site.log(retried).splitlines() if line.startswith("try ")]
    assert tries == ["try 0", "try 1", "try 2"]
    assert not site.documents("job", {"dask_retry": {"$exists": True}})


def test_a_lost_worker_ends_a_task_unless_it_acknowledges_late(site: Site, tmp_path: Path) -> None:
    """Also if Girder knows no more of a task than its name."""
    unknown = "their_tasks.unknown_to_girder"
    counters = [tmp_path / name for name in ("late", "unknown-late", "unknown-early")]
    late = [
        site.delay("at_least_once", str(counters[0])),
        site.start_by_name(f"{unknown}.runs_at_least_once", str(counters[1])),
    ]
    early = [
        site.delay("sleeps", 60),
        site.start_by_name(f"{unknown}.runs_at_most_once", str(counters[2])),
    ]
    for job_id in (*late, *early):
        site.wait(job_id, 60, status=JobStatus.RUNNING)
    wait_until(lambda: all(counter.exists() for counter in counters), 60)
    restart_cluster(site, "worker-0")
    for job_id in late:
        site.wait(job_id, 60, status=JobStatus.SUCCESS)
        assert site.value(job_id) == 2
        assert site.job(job_id)["dask"]["attempt"] == 2
    for job_id in early:
        site.wait(job_id, 60, status=JobStatus.ERROR)
        assert "The task may run at most once" in site.log(job_id)
    assert counters[2].read_text() == "run\n"


def start_chain(seconds: float) -> list[str]:
    """Start a chain whose first task takes some time, and return Celery's ids of its tasks."""
    from celery import chain
    from their_tasks.tasks import add, sleeps_and_adds

    last = chain(sleeps_and_adds.s(1, 2, seconds), add.s(10), add.s(100)).apply_async()
    return [last.parent.parent.id, last.parent.id, last.id]


@pytest.mark.parametrize("part", ["girder", "mongod"])
def test_tasks_and_what_follows_them_outlive_girder_and_its_database(site: Site, part: str) -> None:
    """What ends, asks for a retry and sends the next call meanwhile is there once, afterwards."""
    chained = site.call(start_chain, 2.0)
    retried, failing = site.delay("tries_again", 2, 1.0), site.delay("gives_up")
    delayed = site.delay("add", 20, 22, countdown=3)
    first = wait_until(lambda: site.documents("job", {"celeryTaskId": chained[0]}))
    site.wait(str(first[0]["_id"]), status=JobStatus.RUNNING)
    began = time.monotonic()
    with killed(site, part):
        # The first of the chain ends now, and its worker cannot send the next call yet.
        time.sleep(max(0.0, began + 4.0 - time.monotonic()))
    for task_id, value in zip(chained, (3, 13, 113), strict=True):
        (job,) = wait_until(lambda t=task_id: site.documents("job", {"celeryTaskId": t}), LONG_S)
        site.wait(str(job["_id"]), LONG_S, status=JobStatus.SUCCESS)
        assert site.value(str(job["_id"])) == value
    site.wait(retried, LONG_S, status=JobStatus.SUCCESS)
    assert site.value(retried) == 2
    tries = [line for line in site.log(retried).splitlines() if line.startswith("try ")]
    assert tries == ["try 0", "try 1", "try 2"]
    site.wait(failing, LONG_S, status=JobStatus.ERROR)
    assert site.log(failing).endswith("ValueError: out of reach\n")
    site.wait(delayed, LONG_S, status=JobStatus.SUCCESS)
    assert site.value(delayed) == 42
    for job in site.documents("job"):
        ends = [each["status"] for each in job["timestamps"] if each["status"] in FINAL]
        assert len(ends) == 1, job["title"]


@pytest.mark.parametrize("how", [killed, stopped])
def test_tasks_need_no_redis(site: Site, how: Any) -> None:
    """Redis only tells browsers what has happened. All kinds of calls end without it."""
    with how(site, "redis"):
        chained = site.call(start_chain, 0.1)
        parent, retried = site.delay("starts_child_that_waits"), site.delay("tries_again", 1, 0.2)
        for task_id, value in zip(chained, (3, 13, 113), strict=True):
            (job,) = wait_until(lambda t=task_id: site.documents("job", {"celeryTaskId": t}), 60)
            site.wait(str(job["_id"]), 60, status=JobStatus.SUCCESS)
            assert site.value(str(job["_id"])) == value
        site.wait(retried, 60, status=JobStatus.SUCCESS)
        (child,) = wait_until(lambda: site.children(parent))
        site.admin.put(f"job/{parent}/cancel")
        for job_id in (parent, str(child["_id"])):
            site.wait(job_id, 60, status=JobStatus.CANCELED)
    job_id = site.delay("add", 1, 2)
    site.wait(job_id, 60, status=JobStatus.SUCCESS)


def test_a_cancel_without_a_scheduler_reaches_all_jobs_afterwards(site: Site) -> None:
    """Those that run, those with a child, and those that wait for their time."""
    parent, running = site.delay("starts_child_that_waits"), site.delay("waits")
    delayed = site.delay("add", 1, 1, countdown=600)
    wait_until(lambda: "started" in site.log(parent))
    (child,) = wait_until(lambda: site.children(parent))
    for job_id in (str(child["_id"]), running):
        site.wait(job_id, status=JobStatus.RUNNING)
    with killed(site, "scheduler"):
        for job_id in (parent, running, delayed):
            site.admin.put(f"job/{job_id}/cancel")
    # A plain worker ends with its scheduler, and is restarted by a supervisor.
    site.kill("worker-0")
    site.restart("worker-0")
    for job_id in (parent, str(child["_id"]), running, delayed):
        site.wait(job_id, 60, status=JobStatus.CANCELED)
    job_id = site.delay("add", 1, 2)
    site.wait(job_id, 60, status=JobStatus.SUCCESS)


def timed_status(site: Site) -> tuple[float, Any]:
    """Return the answer of worker/status, and the seconds of the fastest of three requests.

    Other processes may hold up each single one.
    """
    found = []
    for _ in range(3):
        time.sleep(0.6)  # it is answered anew
        began = time.monotonic()
        status = site.admin.get("worker/status")
        found.append((time.monotonic() - began, status))
    return min(found, key=lambda each: each[0])


def test_worker_status_takes_less_than_a_second_whatever_the_scheduler_does(site: Site) -> None:
    def is_connected() -> bool:
        return "dask@worker-0" in (site.admin.get("worker/status")["ping"] or ())

    wait_until(is_connected, 60)
    with connected_workers(site.scheduler, 300, queue="nobody") as names:
        expected = {f"dask@{name}" for name in [*names, "worker-0"]}
        # A scheduler with that many more workers may be too busy for its first answers.
        wait_until(lambda: (site.admin.get("worker/status")["ping"] or {}).keys() == expected, 60)
        seconds, status = timed_status(site)
        assert seconds < 1
        assert status["ping"].keys() == expected
        assert status["stats"].keys() == status["ping"].keys() | {"dask@girder"}
    with stopped(site, "scheduler"):
        seconds, status = timed_status(site)
        assert seconds < 1
        assert not status["ping"]
        assert status["stats"].keys() == {"dask@girder"}
    wait_until(is_connected, 60)
    with killed(site, "scheduler"):
        seconds, status = timed_status(site)
        assert seconds < 1
        assert not status["ping"]
    site.kill("worker-0")
    site.restart("worker-0")
