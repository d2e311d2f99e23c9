"""girder_worker's own integration cases without containers, on Dask.

Those with containers are in test_docker_run.py. The table in docs/girder-worker.md has all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from tests.support.celery_site import CelerySite, wait_until

_ENDED = [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCESS]
_FAILED = [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.ERROR]


def states(site: CelerySite, job_id: str) -> list[int]:
    """Return the states of a job, with CANCELING left out: a cancel may be faster."""
    (job,) = [job for job in site.documents("job") if str(job["_id"]) == job_id]
    found = [each["status"] for each in job["timestamps"]]
    return [status for status in found if status != JobStatus.CANCELING]


def value(task_id: str) -> Any:
    """Return the value of a task, in a request after that which started it."""
    from girder_worker.app import app

    return app.AsyncResult(task_id).get(timeout=30)


def by_delay(name: str, args: tuple[Any, ...]) -> Any:
    import their_tasks.tasks

    return getattr(their_tasks.tasks, name).delay(*args).job["_id"]


def by_apply_async(name: str, args: tuple[Any, ...]) -> Any:
    import their_tasks.tasks

    return getattr(their_tasks.tasks, name).apply_async(args).job["_id"]


def by_delay_of_signature(name: str, args: tuple[Any, ...]) -> Any:
    import their_tasks.tasks

    return getattr(their_tasks.tasks, name).s(*args).delay().job["_id"]


def by_apply_async_of_signature(name: str, args: tuple[Any, ...]) -> Any:
    import their_tasks.tasks

    return getattr(their_tasks.tasks, name).s(*args).apply_async().job["_id"]


_STARTS = (by_delay, by_apply_async, by_delay_of_signature, by_apply_async_of_signature)


def test_session_is_that_of_the_administrator(celery_site: CelerySite) -> None:
    me = celery_site.admin.get("user/me")
    assert (me["login"], me["admin"], me["status"]) == ("admin", True, "enabled")


@pytest.mark.parametrize("start", _STARTS)
def test_task_success(celery_site: CelerySite, start: Callable[..., Any]) -> None:
    job_id = str(celery_site.call(start, "fibonacci", (20,)))
    job = celery_site.wait(job_id, status=JobStatus.SUCCESS)
    assert states(celery_site, job_id) == _ENDED
    assert celery_site.call(value, job["celeryTaskId"]) == 6765


@pytest.mark.parametrize("start", _STARTS)
def test_task_fails(celery_site: CelerySite, start: Callable[..., Any]) -> None:
    job_id = str(celery_site.call(start, "fails", ("intentionally",)))
    celery_site.wait(job_id, status=JobStatus.ERROR)
    assert states(celery_site, job_id) == _FAILED
    assert "RuntimeError: intentionally\n" in celery_site.log(job_id)


@pytest.mark.parametrize("method", ["delay", "apply_async"])
def test_custom_job_options(celery_site: CelerySite, method: str) -> None:
    def start(method: str) -> str:
        from their_tasks.tasks import fibonacci

        if method == "delay":
            result = fibonacci.delay(20, girder_job_title="With delay")
        else:
            result = fibonacci.apply_async((20,), {}, girder_job_title="With apply_async")
        return str(result.job["_id"])

    job = celery_site.wait(celery_site.call(start, method), status=JobStatus.SUCCESS)
    assert job["title"] == f"With {method}"


@pytest.mark.parametrize(
    ("is_given", "expected"), [(True, _ENDED), (False, _FAILED)], ids=["generation", "bad token"]
)
def test_girder_client_has_the_token_of_the_call(
    celery_site: CelerySite, is_given: bool, expected: list[int]
) -> None:
    user = celery_site.create_user()

    def start(path: str, is_given: bool) -> str:
        from girder.api.rest import getCurrentUser
        from girder.models.token import Token
        from their_tasks.tasks import looks_up

        token = str(Token().createToken(getCurrentUser())["_id"]) if is_given else ""
        return str(looks_up.delay(path, girder_client_token=token).job["_id"])

    path = f"/user/{user.login}/Private"
    job_id = celery_site.call(start, path, is_given, user=user)
    celery_site.wait(job_id, status=JobStatus(expected[-1]))
    assert states(celery_site, job_id) == expected


def test_task_revoke(celery_site: CelerySite) -> None:
    def revoke(task_id: str) -> None:
        from girder_worker.app import app

        app.AsyncResult(task_id).revoke()

    job_id = celery_site.delay("waits")
    celery_site.wait(job_id, status=JobStatus.RUNNING)
    celery_site.call(revoke, celery_site.job(job_id)["celeryTaskId"])
    celery_site.wait(job_id, status=JobStatus.CANCELED)
    assert states(celery_site, job_id) == [
        JobStatus.QUEUED,
        JobStatus.RUNNING,
        JobStatus.CANCELED,
    ]


def test_task_revoke_in_queue(celery_site: CelerySite) -> None:
    def fill_and_revoke(threads: int) -> list[str]:
        from their_tasks.tasks import waits

        results = [waits.delay() for _ in range(threads + 1)]
        results[-1].revoke()
        return [str(result.job["_id"]) for result in results]

    *others, job_id = celery_site.call(fill_and_revoke, celery_site.threads)
    celery_site.wait(job_id, status=JobStatus.CANCELED)
    assert states(celery_site, job_id) == [JobStatus.QUEUED, JobStatus.CANCELED]
    for other in others:
        celery_site.admin.put(f"job/{other}/cancel")
        celery_site.wait(other, status=JobStatus.CANCELED)


def test_chained_tasks(celery_site: CelerySite) -> None:
    def start() -> tuple[int, list[Any]]:
        from girder.api.rest import getCurrentUser
        from girder_jobs.models.job import Job
        from their_tasks.tasks import fibonacci

        result = (fibonacci.s(6) | fibonacci.s() | fibonacci.s()).delay()
        value = result.get(timeout=60)
        jobs = [result.job]
        for _ in range(2):
            jobs.append(Job().load(jobs[-1]["parentId"], user=getCurrentUser()))
        return value, jobs

    value, jobs = celery_site.call(start)
    assert value == 10946
    assert [job["args"] for job in jobs] == [[21], [8], [6]]
    assert jobs[-1].get("parentId") is None
    assert not any("jobInfoSpec" in job for job in jobs)


def test_chained_task_with_bad_token_fails(celery_site: CelerySite) -> None:
    user = celery_site.create_user()

    def start(path: str) -> list[str]:
        from their_tasks.tasks import fibonacci, looks_up

        last = (fibonacci.s(5) | looks_up.si(path, girder_client_token="")).delay()
        return [last.parent.id, last.id]

    first, last = celery_site.call(start, f"/user/{user.login}/Private", user=user)
    for task_id, expected in ((first, _ENDED), (last, _FAILED)):
        query = {"celeryTaskId": task_id}
        (job,) = wait_until(lambda query=query: celery_site.documents("job", query))
        celery_site.wait(str(job["_id"]), status=JobStatus(expected[-1]))
        assert states(celery_site, str(job["_id"])) == expected


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [("fibonacci", (20,), _ENDED), ("fails", ("intentionally",), _FAILED)],
)
def test_custom_task_name(
    celery_site: CelerySite, name: str, args: tuple[Any, ...], expected: list[int]
) -> None:
    job_id = celery_site.call(schedule, name, args)
    job = celery_site.wait(job_id, status=JobStatus(expected[-1]))
    assert states(celery_site, job_id) == expected
    assert job["celeryTaskId"]


def schedule(name: str, args: tuple[Any, ...]) -> str:
    """Schedule a job for the handler of girder_worker's plugin, and return its id."""
    from girder.api.rest import getCurrentUser
    from girder_jobs.models.job import Job

    fields = {"celeryTaskName": f"their_tasks.tasks.{name}"}
    job = Job().createJob(
        title=name,
        type="traditional",
        handler="worker_handler",
        user=getCurrentUser(),
        args=args,
        otherFields=fields,
    )
    Job().scheduleJob(job)
    return str(job["_id"])


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "in queue"])
def test_task_cancel(celery_site: CelerySite, is_running: bool) -> None:
    threads = 0 if is_running else celery_site.threads
    others = [celery_site.call(schedule, "waits", ()) for _ in range(threads)]
    job_id = celery_site.call(schedule, "waits", ())
    for running in [job_id] if is_running else others:
        celery_site.wait(running, status=JobStatus.RUNNING)
    for canceled in (job_id, *others):
        celery_site.admin.put(f"job/{canceled}/cancel")
        celery_site.wait(canceled, status=JobStatus.CANCELED)
    running = [JobStatus.RUNNING] if is_running else []
    assert states(celery_site, job_id) == [JobStatus.QUEUED, *running, JobStatus.CANCELED]
