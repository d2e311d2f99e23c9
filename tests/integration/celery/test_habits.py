"""Habits of tasks of Celery that a site may have: retries, groups, requests, calls in place."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from bson import ObjectId

from girder_dask.jobs import JobStatus
from tests.integration.celery.test_composition import jobs_of, value_of
from tests.support.celery_site import CelerySite, wait_until


def test_autoretry_counts_and_gives_up(celery_site: CelerySite) -> None:
    job_id, failing = (celery_site.delay("retries_by_itself", n) for n in (2, 9))
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) == 2
    celery_site.wait(failing, status=JobStatus.ERROR)
    assert celery_site.log(failing).endswith("ConnectionError: away\n")


def test_the_request_names_root_and_parent(celery_site: CelerySite) -> None:
    def start() -> list[str]:
        from celery import chain
        from their_tasks.tasks import add, family

        last = chain(add.s(1, 2), family.si()).apply_async()
        return [last.parent.id, last.id]

    user = celery_site.create_user()
    first, last = celery_site.call(start, user=user)
    request = value_of(celery_site, user, last)
    assert (request["id"], request["root_id"], request["parent_id"]) == (last, first, first)
    assert request["task"] == "their_tasks.tasks.family"


def test_a_task_may_wait_for_another_and_call_in_place(celery_site: CelerySite) -> None:
    waiting, calling = celery_site.delay("awaits_child"), celery_site.delay("calls_here")
    celery_site.wait(waiting, 60, status=JobStatus.SUCCESS)
    assert celery_site.value(waiting) == 42
    celery_site.wait(calling, status=JobStatus.SUCCESS)
    assert celery_site.value(calling) == [3, 7, 11]
    assert not celery_site.children(calling)


def test_options_without_a_meaning_here_do_no_harm(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("with_options")
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) is None  # ignore_result


def test_a_result_may_be_forgotten(celery_site: CelerySite) -> None:
    """Packages do so to free the memory of their result backend."""

    def start() -> list[object]:
        from their_tasks.tasks import add

        result = add.delay(20, 22)
        value = result.get(timeout=60)
        result.forget()
        return [value, result.job["_id"]]

    value, job_id = celery_site.call(start)
    assert value == 42
    celery_site.wait(str(job_id), status=JobStatus.SUCCESS)


@pytest.mark.parametrize("form", ["naive", "zone", "seconds"])
def test_expires_takes_times_and_seconds(celery_site: CelerySite, form: str) -> None:
    now = datetime.now(timezone.utc)
    past: Any = {
        "naive": (now - timedelta(hours=1)).replace(tzinfo=None),
        "zone": (now - timedelta(hours=1)).astimezone(timezone(timedelta(hours=9))),
        "seconds": -5,
    }[form]
    future: Any = 600 if form == "seconds" else past + timedelta(hours=2)
    expired, valid = (celery_site.delay("add", 1, 2, expires=each) for each in (past, future))
    celery_site.wait(expired, status=JobStatus.CANCELED)
    assert "has expired" in celery_site.log(expired)
    celery_site.wait(valid, status=JobStatus.SUCCESS)


@pytest.mark.parametrize("kind", ["group", "starmap", "chunks", "chain of groups"])
def test_canvas_forms_run(celery_site: CelerySite, kind: str) -> None:
    def start(kind: str) -> list[str]:
        from celery import chain, group
        from their_tasks.tasks import add, total

        pairs = [(n, n) for n in range(4)]
        if kind == "group":
            result = group(add.s(*pair) for pair in pairs).apply_async()
            return [each.id for each in result.results]
        if kind == "starmap":
            return [add.starmap(pairs).apply_async().id]
        if kind == "chunks":
            return [each.id for each in add.chunks(pairs, 2).group().apply_async().results]
        both = group(add.s(*pair) for pair in pairs)
        return [chain(both, total.s(), add.s(100)).apply_async().id]

    user = celery_site.create_user()
    found = [value_of(celery_site, user, each) for each in celery_site.call(start, kind, user=user)]
    expected = {
        "group": [0, 2, 4, 6],
        "starmap": [[0, 2, 4, 6]],
        "chunks": [[0, 2], [4, 6]],
        "chain of groups": [112],
    }
    assert found == expected[kind]


def test_a_chord_with_a_failed_member_does_not_run_its_body(celery_site: CelerySite) -> None:
    def start() -> tuple[str, str]:
        from celery import chord
        from their_tasks.tasks import add, fails, note_failure, total

        body = total.s().on_error(note_failure.s())
        result = chord([add.s(1, 2), fails.s("one of them")])(body)
        return result.id, result.parent.results[1].id

    user = celery_site.create_user()
    body, failed = celery_site.call(start, user=user)
    job = wait_until(lambda: jobs_of(celery_site, user).get(failed))
    celery_site.wait(str(job["_id"]), status=JobStatus.ERROR)
    query = {"dask.task": "celery:chord_unlock", "dask.open": True, "userId": ObjectId(user.id)}
    wait_until(lambda: not celery_site.documents("job", query))
    assert body not in jobs_of(celery_site, user)
    titles = [each["title"] for each in jobs_of(celery_site, user).values()]
    assert not [title for title in titles if title.endswith("total")]
