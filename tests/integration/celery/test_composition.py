"""Chains, groups, chords, links, retries and replacements of girder_worker's tasks."""

from __future__ import annotations

from typing import Any

import pytest

from girder_dask.jobs import FINAL, JobStatus, waits_for
from girder_dask.testing.stack import User
from tests.support.celery_site import CelerySite, wait_until


def jobs_of(site: CelerySite, user: User) -> dict[str, dict[str, Any]]:
    """Return the jobs of a user by Celery's ids, once all have ended."""
    from bson import ObjectId

    query = {"userId": ObjectId(user.id)}
    return {job["celeryTaskId"]: job for job in site.documents("job", query)}


def value_of(site: CelerySite, user: User, task_id: str) -> Any:
    """Return the value of a task, once its job is there and has ended in SUCCESS."""
    job = wait_until(lambda: jobs_of(site, user).get(task_id), 90)
    site.wait(str(job["_id"]), status=JobStatus.SUCCESS)
    return site.value(str(job["_id"]))


def start_chain() -> list[str]:
    from celery import chain
    from their_tasks.tasks import add, fibonacci

    last = chain(add.s(1, 2), add.s(3), fibonacci.s()).apply_async()
    return [last.parent.parent.id, last.parent.id, last.id]


def test_a_chain_of_a_user_runs_with_parents(celery_site: CelerySite) -> None:
    user = celery_site.create_user()
    ids = celery_site.call(start_chain, user=user)
    assert [value_of(celery_site, user, each) for each in ids] == [3, 6, 8]
    jobs = jobs_of(celery_site, user)
    assert [jobs[each].get("parentId") for each in ids[1:]] == [
        jobs[each]["_id"] for each in ids[:2]
    ]


def test_a_chain_goes_on_with_a_task_of_another_package_and_any_object(
    celery_site: CelerySite,
) -> None:
    """Girder has stored the call, so the job of a user may send it."""

    def start() -> str:
        from celery import chain
        from their_tasks.tasks import Scale, add, scaled

        last = scaled.s(Scale(7), girder_job_title="Scaled")
        return str(chain(add.s(1, 2), last).apply_async().id)

    user = celery_site.create_user()
    last = celery_site.call(start, user=user)
    assert value_of(celery_site, user, last) == 21
    assert jobs_of(celery_site, user)[last]["title"] == "Scaled"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("groups", 36),
        ("chord with a chain", 112),
        ("objects in a group", 10),
        ("starmap", [3, 7]),
        ("chain in a group", 9),
        ("a shared object", 72),
        ("a shared object in a group", 24),
        ("an object in the body of a chord", [3, 4] * 6),
        ("keys that are no text", 3),
    ],
)
def test_a_chain_of_a_user_goes_on_with_compositions(
    celery_site: CelerySite, kind: str, expected: Any
) -> None:
    def start(kind: str) -> str:
        from celery import chain, chord, group
        from their_tasks.tasks import Scale, add, scaled, total, total_of_keys

        shared, keyed = Scale(6), {1: 1, (2, None): 2}
        one, two = group(add.s(1), add.s(2)), group(add.s(5), add.s(6))
        rest: list[Any] = {
            "groups": [one, total.s(), two, total.s(), add.s(11)],
            "chord with a chain": [chord(one, chain(total.s(), add.s(5))), add.s(100)],
            "objects in a group": [group(scaled.s(Scale(2)), scaled.s(Scale(3))), total.s()],
            "starmap": [add.starmap([(1, 2), (3, 4)])],
            "a shared object": [scaled.s(shared), scaled.s(scale=shared)],
            "a shared object in a group": [group(scaled.s(shared), scaled.s(shared)), total.s()],
            "an object in the body of a chord": [chord(one, scaled.s(shared))],
            "keys that are no text": [total_of_keys.si(keyed)],
            "chain in a group": [group(chain(add.s(1), add.s(1)), add.s(3)), total.s()],
        }[kind]
        return str(chain(add.s(1, 1), *rest).apply_async().id)

    user = celery_site.create_user()
    assert value_of(celery_site, user, celery_site.call(start, kind, user=user)) == expected


def test_a_chord_of_a_user_collects_the_values(celery_site: CelerySite) -> None:
    def start() -> str:
        from celery import chord
        from their_tasks.tasks import add, total

        return str(chord([add.s(n, n) for n in range(3)])(total.s()).id)

    user = celery_site.create_user()
    assert value_of(celery_site, user, celery_site.call(start, user=user)) == 6


def test_the_body_of_a_chord_may_have_an_object(celery_site: CelerySite) -> None:
    def start() -> str:
        from celery import chord
        from their_tasks.tasks import Scale, add, scaled

        return str(chord([add.s(n, n) for n in range(3)])(scaled.s(Scale(2))).id)

    user = celery_site.create_user()
    body = celery_site.call(start, user=user)
    assert value_of(celery_site, user, body) == [0, 2, 4, 0, 2, 4]


def test_a_task_of_a_user_starts_a_chord(celery_site: CelerySite) -> None:
    user = celery_site.create_user()
    job_id = celery_site.delay("starts_chord", user=user)
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert value_of(celery_site, user, celery_site.value(job_id)) == 6


def test_link_runs_after_success_and_link_error_after_failure(celery_site: CelerySite) -> None:
    def start() -> None:
        from their_tasks.tasks import add, fails, note_failure

        add.apply_async((1, 2), link=add.s(10), link_error=note_failure.s())
        fails.apply_async(("oh",), link=add.s(1), link_error=note_failure.s())

    user = celery_site.create_user()
    celery_site.call(start, user=user)

    def ended() -> list[dict[str, Any]] | None:
        jobs = list(jobs_of(celery_site, user).values())
        return jobs if len(jobs) == 4 and all(job["status"] in FINAL for job in jobs) else None

    jobs = wait_until(ended)
    values = [celery_site.value(str(job["_id"])) for job in jobs if job["status"] == 3]
    failed = next(job for job in jobs if job["status"] == JobStatus.ERROR)
    assert set(map(str, values)) == {"13", "3", f"{failed['celeryTaskId']} failed"}


def test_retry_holds_no_worker_and_counts(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("tries_again", 1, 8.0)
    reason = wait_until(lambda: waits_for(celery_site.job(job_id)))
    assert reason.startswith("it is to start at ")

    def waits_without_worker() -> bool:
        active = celery_site.admin.get("worker/status")["active"] or {}
        is_active = job_id in [task["id"] for tasks in active.values() for task in tasks]
        return "dask@worker-0" in active and not is_active and bool(job_waits())

    def job_waits() -> str:
        return waits_for(celery_site.job(job_id))

    wait_until(waits_without_worker)
    job = celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) == 1
    assert job["dask"]["attempt"] == 2
    log = celery_site.log(job_id)
    assert [line for line in log.splitlines() if line.startswith("try")] == ["try 0", "try 1"]
    assert "The task asks to be tried again at " in log


def test_retry_with_other_arguments_uses_them(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("doubles_until", 3)
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert celery_site.value(job_id) == 12


def test_retry_ends_with_the_reason_when_it_gives_up(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("gives_up")
    celery_site.wait(job_id, status=JobStatus.ERROR)
    assert celery_site.log(job_id).endswith("ValueError: out of reach\n")


def test_cancel_ends_a_job_that_waits_for_its_next_try(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("tries_again", 2, 60.0)
    wait_until(lambda: "asks to be tried again" in celery_site.log(job_id))
    celery_site.admin.put(f"job/{job_id}/cancel")
    celery_site.wait(job_id, status=JobStatus.CANCELED)


def test_replace_has_another_task_continue(celery_site: CelerySite) -> None:
    user = celery_site.create_user()
    job_id = celery_site.delay("is_replaced", 1, user=user)
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    (child,) = celery_site.children(job_id)
    celery_site.wait(str(child["_id"]), status=JobStatus.SUCCESS)
    assert celery_site.value(str(child["_id"])) == 101


def test_replacement_is_the_parent_of_what_it_starts(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("is_replaced_by_parent", 4, user=celery_site.create_user())
    celery_site.wait(job_id, status=JobStatus.SUCCESS)
    (replacement,) = celery_site.children(job_id)
    celery_site.wait(str(replacement["_id"]), status=JobStatus.SUCCESS)
    (child,) = celery_site.children(str(replacement["_id"]))
    assert child["title"] == "The child"
    celery_site.wait(str(child["_id"]), status=JobStatus.SUCCESS)


@pytest.mark.parametrize("wait_s", [-5, 60])
def test_expires_cancels_a_job_that_begins_too_late(celery_site: CelerySite, wait_s: float) -> None:
    job_id = celery_site.delay("add", 1, 1, expires=wait_s)
    job = celery_site.wait(job_id)
    expected = JobStatus.CANCELED if wait_s < 0 else JobStatus.SUCCESS
    assert job["status"] == expected


def test_time_limit_ends_the_task(celery_site: CelerySite) -> None:
    job_id = celery_site.delay("sleeps", 60, time_limit=1)
    celery_site.wait(job_id, status=JobStatus.ERROR)
    assert "The task exceeded its time limit of 1 s." in celery_site.log(job_id)


def test_a_whole_save_of_an_old_copy_harms_no_job(celery_site: CelerySite) -> None:
    def start() -> tuple[str, Any]:
        from girder_jobs.models.job import Job
        from their_tasks.tasks import add

        job = Job().load(add.delay(20, 22).job["_id"], force=True)
        return str(job["_id"]), job

    job_id, copy = celery_site.call(start)
    celery_site.wait(job_id, status=JobStatus.SUCCESS)

    def save(copy: Any) -> None:
        from girder_jobs.models.job import Job

        copy["meta"] = {"kept": True}
        copy["note"] = "saved"
        Job().save(copy)

    celery_site.call(save, copy)
    (stored,) = celery_site.documents("job", {"_id": copy["_id"]})
    assert stored["status"] == JobStatus.SUCCESS
    assert len(stored["timestamps"]) == 3
    assert (stored["meta"], stored["note"]) == ({"kept": True}, "saved")
    assert celery_site.value(job_id) == 42
