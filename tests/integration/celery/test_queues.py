"""Queues: their workers run nothing else, and that of ``local`` has Girder's database."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from bson import ObjectId

from girder_dask.jobs import JobStatus
from tests.support.celery_site import CelerySite, wait_until


@pytest.fixture(scope="module")
def waiting(celery_site: CelerySite) -> str:
    """A job for the queue ``local``, started before any worker serves it."""
    return celery_site.delay("locally")


@pytest.fixture(scope="module")
def local_worker(
    celery_site: CelerySite, waiting: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A worker of the queue ``local``, started by the command."""
    directory: Path = tmp_path_factory.mktemp("local_worker")
    command = [sys.executable, "-m", "girder_dask.cli", "local-worker", celery_site.scheduler]
    command += ["--threads", "2", "--", "--name", "of-local", "--no-nanny"]
    env = {
        **os.environ,
        "GIRDER_MONGO_URI": celery_site.mongo,
        "GIRDER_NOTIFICATION_REDIS_URL": celery_site.redis,
    }
    reasons = wait_until(lambda: celery_site.job(waiting)["dask"].get("waits"))
    assert "the resources queue:local=1" in reasons
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, cwd=directory, stdout=log, stderr=log)
        try:
            wait_until(lambda: "dask@of-local" in pings(celery_site))
            yield "of-local"
        finally:
            process.terminate()
            process.wait(30)


def pings(site: CelerySite) -> Collection[str]:
    """Return the names of the workers that answer, none if the scheduler is too busy for that."""
    names: Collection[str] = site.admin.get("worker/status")["ping"] or ()
    return names


def test_a_job_waits_for_a_worker_of_its_queue(
    celery_site: CelerySite, waiting: str, local_worker: str
) -> None:
    celery_site.wait(waiting, status=JobStatus.SUCCESS)
    assert celery_site.value(waiting) == "of-local"


def test_no_other_task_runs_on_the_worker_of_a_queue(
    celery_site: CelerySite, local_worker: str
) -> None:
    def start() -> list[str]:
        from my_worker_tasks import env
        from their_tasks.tasks import worker_name

        theirs = [worker_name.delay() for _ in range(10)]
        ours = [env.delay() for _ in range(10)]
        return [str(result.job["_id"]) for result in [*theirs, *ours]]

    ids = celery_site.call(start)
    for job_id in ids:
        celery_site.wait(job_id, status=JobStatus.SUCCESS)
    values = [celery_site.value(job_id) for job_id in ids]
    assert values[:10] == ["worker-0"] * 10
    assert [value["worker"] for value in values[10:]] == ["worker-0"] * 10


def test_girder_copies_and_deletes_folders_there(
    celery_site: CelerySite, local_worker: str
) -> None:
    user = celery_site.create_user()
    folder = user.folder["_id"]
    celery_site.upload(b"content", "file", client=user.client, folder=folder)
    user.client.post(f"folder/{folder}/copy", parameters={"name": "The copy"})

    def copies() -> list[str]:
        found = user.client.listFolder(user.id, parentFolderType="user", name="The copy")
        return [each["_id"] for each in found]

    (copy,) = wait_until(copies)
    wait_until(lambda: list(user.client.listItem(copy)))
    user.client.delete(f"folder/{copy}")
    wait_until(lambda: not copies())
    jobs = celery_site.documents("job", {"dask.task": "girder.tasks:copyFolderTask"})
    assert [job["userId"] for job in jobs] == [ObjectId(user.id)]
    celery_site.wait(str(jobs[0]["_id"]), status=JobStatus.SUCCESS)
