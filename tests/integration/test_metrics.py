"""Metrics of a real stack: what they count, who may read them, and what they never show."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from girder_dask import credential
from tests.support.metrics_site import (
    FAILING,
    TASK,
    TITLE,
    Scrape,
    another_girder,
    metrics_key,
    of_girder,
    of_quiet_girder,
    of_scheduler,
    run_jobs_of_all_ends,
    until_scraped,
)
from tests.support.rest_site import ask, call, start_waiting, submit

HOSTILE = 'bad:x"} 1\nhostile_metric{a="b'


@pytest.fixture(scope="module")
def key(girder_stack: Any) -> str:
    return metrics_key(girder_stack)


@pytest.fixture(scope="module")
def scrapes(girder_stack: Any, key: str) -> tuple[Scrape, Scrape, list[str]]:
    """The metrics of Girder before and after jobs of all ends, and the ids of these."""
    before = of_quiet_girder(girder_stack, key)
    ended = before.get("girder_dask_jobs_ended_total")
    ids = run_jobs_of_all_ends(girder_stack)
    after = until_scraped(
        lambda: of_girder(girder_stack, key),
        lambda found: found.get("girder_dask_jobs_ended_total") >= ended + len(ids),
    )
    return before, after, ids


def test_girder_metrics_count_jobs_of_all_ends(
    scrapes: tuple[Scrape, Scrape, list[str]],
) -> None:
    before, after, ids = scrapes

    def more(name: str, **labels: str) -> float:
        return after.get(name, **labels) - before.get(name, **labels)

    assert more("girder_dask_jobs_created_total") == len(ids)
    assert more("girder_dask_jobs_created_total", task="other") == 1
    assert more("girder_dask_jobs_ended_total", state="SUCCESS", task=TASK) == 1
    assert more("girder_dask_jobs_ended_total", state="ERROR", task=FAILING) == 1
    assert more("girder_dask_jobs_ended_total", state="ERROR", task="other") == 1
    assert more("girder_dask_jobs_ended_total", state="CANCELED") == 1
    assert more("girder_dask_job_retries_total", task=FAILING) == 1
    assert after.get("girder_dask_leading_schedulers") == 1
    assert after.get("girder_dask_lease_age_seconds") < 30
    # The task that no worker has never began, and the one that failed began twice.
    assert more("girder_dask_job_queue_seconds_count") == 4
    assert more("girder_dask_job_run_seconds_count") == 3
    assert 0 < more("girder_dask_job_run_seconds_sum", task=FAILING) < 30
    assert more("girder_dask_log_bytes_total", task=TASK) >= len("arg1 is 'text'\n")
    assert more("girder_dask_update_lag_seconds_count") >= 2 * len(ids) - 1


def test_girder_metrics_are_the_same_whichever_process_answers(
    girder_stack: Any, key: str, tmp_path: Path
) -> None:
    def ended(found: Scrape) -> float:
        return found.get("girder_dask_jobs_ended_total", task=TASK)

    with another_girder(girder_stack, tmp_path / "log") as other:
        of_quiet_girder(girder_stack, key)
        both = until_scraped(
            lambda: of_girder(other, key), lambda found: found.get("girder_dask_processes") >= 2
        )
        # One that another test has ended counts for some time.
        assert both.get("girder_dask_processes") >= 2
        name = "girder_dask_jobs_created_total"
        before = of_girder(girder_stack, key).get(name)
        assert both.get(name) == before > 0
        # Each of the two records jobs, and either shows those of both.
        made = [
            submit(stack, call(TASK, n), token=girder_stack.admin.token).json()["jobs"][0]
            for n in range(3)
            for stack in (girder_stack, other)
        ]
        for job in made:
            girder_stack.wait(job["_id"])
        for stack in (girder_stack, other):
            after = until_scraped(
                lambda stack=stack: of_girder(stack, key),  # type: ignore[misc]
                lambda found: found.get(name) >= before + 6 and ended(found) >= 6,
            )
            assert after.get(name) == before + 6
            assert ended(after) >= 6


def test_girder_says_what_to_install_without_prometheus_client(
    girder_stack: Any, key: str, tmp_path: Path
) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with another_girder(girder_stack, tmp_path / "log", PYTHONPATH=path) as other:
        bearer = {"Authorization": f"Bearer {key}"}
        answer = ask(other, "GET", "dask/metrics", headers=bearer)
        assert answer.status_code == 501
        assert "pip install 'girder_dask[metrics]'" in answer.json()["message"]


def test_girder_metrics_count_the_jobs_that_wait(girder_stack: Any, key: str) -> None:
    waiting = {"state": "QUEUED", "task": "my_worker_tasks:noop"}
    job = girder_stack.call(start_waiting)["id"]
    try:
        # Other tests of this stack may have left jobs that wait.
        found = until_scraped(
            lambda: counted_again(girder_stack, key),
            lambda found: found.get("girder_dask_jobs", **waiting) >= 1,
        )
        assert found.get("girder_dask_jobs", **waiting) >= 1
        assert found.get("girder_dask_oldest_waiting_job_seconds") > 0
    finally:
        ask(girder_stack, "PUT", f"job/{job}/cancel", by=girder_stack.admin)


def test_girder_metrics_survive_hostile_names_of_tasks(girder_stack: Any, key: str) -> None:
    job = girder_stack.call(start_waiting)["id"]
    try:
        girder_stack.call(rename_task, job, HOSTILE)
        found = until_scraped(
            lambda: counted_again(girder_stack, key),
            lambda found: found.get("girder_dask_jobs", task="other", state="QUEUED") == 1,
        )
        assert found.get("girder_dask_jobs", task="other", state="QUEUED") == 1
        assert "hostile_metric" not in found.text
    finally:
        ask(girder_stack, "PUT", f"job/{job}/cancel", by=girder_stack.admin)


def test_metrics_show_no_login_title_token_or_job(
    girder_stack: Any, key: str, scrapes: tuple[Scrape, Scrape, list[str]]
) -> None:
    _, after, ids = scrapes
    user = girder_stack.admin.get("user/me")
    text = after.text + of_scheduler(girder_stack).text
    secrets = [TITLE, user["login"], user["email"], user["_id"], key, girder_stack.api_key, *ids]
    assert [each for each in secrets if each in text] == []
    assert girder_stack.admin.token not in text


def test_scheduler_metrics_are_served_with_those_of_dask(
    girder_stack: Any, scrapes: tuple[Scrape, Scrape, list[str]]
) -> None:
    def retries(found: Scrape) -> float:
        return found.get("girder_dask_scheduler_retries_total", cause="error")

    found = until_scraped(lambda: of_scheduler(girder_stack), lambda found: retries(found) >= 1)
    assert retries(found) >= 1
    assert found.get("dask_scheduler_workers") >= 1
    assert found.get("girder_dask_scheduler_info") == 1
    assert found.get("girder_dask_scheduler_leads") == 1
    assert found.get("girder_dask_scheduler_requests_total", purpose="updates") > 0
    # Other tests may have stopped Girder or a worker.
    assert "girder_dask_scheduler_failed_requests_total" in found.names
    assert found.get("girder_dask_scheduler_update_lag_seconds_count") > 0
    assert found.get("girder_dask_scheduler_log_characters_total") > 0
    assert "girder_dask_scheduler_lost_workers_total" in found.names
    girder_stack.cancel_open_jobs()
    settled = until_scraped(
        lambda: of_scheduler(girder_stack),
        lambda found: not found.get("girder_dask_scheduler_jobs"),
    )
    assert settled.get("girder_dask_scheduler_jobs") == 0
    assert settled.get("girder_dask_scheduler_queue_jobs") == 0


@pytest.mark.parametrize("who", ["nobody", "user", "administrator", "scheduler", "long"])
def test_girder_metrics_refuse_who_has_not_the_scope(
    girder_stack: Any, girder_user: Any, who: str
) -> None:
    given: dict[str, Callable[[], dict[str, str]]] = {
        "nobody": dict,
        "user": lambda: {"Girder-Token": girder_user.client.token},
        "administrator": lambda: {"Girder-Token": girder_stack.admin.token},
        "scheduler": lambda: {"Authorization": f"Bearer {credential.create(girder_stack.admin)}"},
        "long": lambda: {"Authorization": "Bearer " + "x" * 5000},
    }
    answer = ask(girder_stack, "GET", "dask/metrics", headers=given[who]())
    assert answer.status_code == (401 if who == "nobody" else 403)
    assert "girder_dask_" not in answer.text


def test_girder_metrics_need_a_scope_that_only_administrators_give(
    girder_stack: Any, girder_user: Any, key: str
) -> None:
    asked = {"name": "mine", "scope": '["dask.metrics.read"]', "active": True}
    answer = ask(girder_stack, "POST", "api_key", params=asked, by=girder_user)
    assert answer.status_code == 400
    assert "Invalid scopes" in answer.text
    # A token that was made with the key works too, in Girder's own header.
    made = ask(girder_stack, "POST", "api_key/token", data={"key": key}).json()
    token = made["authToken"]["token"]
    assert ask(girder_stack, "GET", "dask/metrics", token=token).status_code == 200
    assert ask(girder_stack, "GET", "dask/status", token=token).status_code in (401, 403)


def test_girder_metrics_refuse_a_key_that_was_deactivated(girder_stack: Any) -> None:
    key = metrics_key(girder_stack)
    of_girder(girder_stack, key)
    (found,) = (each for each in girder_stack.admin.get("api_key") if each["key"] == key)
    girder_stack.admin.put(f"api_key/{found['_id']}", parameters={"active": "false"})
    bearer = {"Authorization": f"Bearer {key}"}
    assert ask(girder_stack, "GET", "dask/metrics", headers=bearer).status_code == 403


def counted_again(stack: Any, key: str) -> Scrape:
    """Scrape, with a new count of the unfinished jobs if the scrape is a new one."""
    stack.call(count_again)
    return of_girder(stack, key)


def count_again() -> None:
    """Let the next scrape count the unfinished jobs. Run it in Girder."""
    from datetime import datetime, timezone

    from girder_dask.plugin.metrics.counter_store import collection

    collection().update_one({"_id": '["queue"]'}, {"$set": {"due": datetime.now(timezone.utc)}})


def rename_task(job_id: str, name: str) -> None:
    """Give a job another task in the database. Run it in Girder."""
    from bson import ObjectId
    from girder_jobs.models.job import Job

    Job().collection.update_one({"_id": ObjectId(job_id)}, {"$set": {"dask.task": name}})
