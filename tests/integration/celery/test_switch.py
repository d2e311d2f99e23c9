"""One site on RabbitMQ and on Dask: the same outputs, and a switch there and back."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from girder_dask.jobs import JobStatus
from girder_dask.testing.stack import User
from tests.support.celery_site import wait_until
from tests.support.switch_site import SwitchSite

# Lines of logs that only one of the two writes.
_OWN_LINES = ("The job was canceled.", "The task asks to be tried again ", "speaker logs ")
# What both write of an exception, in another order.
_OF_ERROR = {"RuntimeError: no more numbers", "    raise RuntimeError(message)"}

# The worker of Celery is still starting when the first jobs are sent.
WAIT_S = 90

# When jobs that wait at a switch are canceled.
CANCELED = ("canceled before the switch", "canceled after it")

_FIELDS = ("status", "title", "type", "public", "meta", "args", "kwargs", "userId")


@pytest.fixture(scope="module")
def switch_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwitchSite]:
    """A stack with RabbitMQ, a worker of Celery, and Dask."""
    with SwitchSite(tmp_path_factory.mktemp("switch_site")) as site:
        yield site


def start_all(file_id: str, folder_id: str, item_id: str, path: str) -> dict[str, Any]:
    """Start jobs of all kinds, and return Celery's ids by kind, and the values of some."""
    from celery import chain, group
    from girder_worker.app import app
    from girder_worker.utils.transforms import girder_io
    from their_tasks import tasks

    to_folder = girder_io.GirderUploadToFolder(folder_id, delete_file=True)
    to_item = girder_io.GirderUploadToItem(item_id, delete_file=True)
    results = {
        "plain": tasks.add.delay(20, 22),
        "bound": tasks.fibonacci.delay(5),
        "output": tasks.speaks.delay("speaker", 3),
        "failing": tasks.fails.delay("no more numbers"),
        "options": tasks.add.apply_async(
            (2, 3),
            girder_job_title="Two and three",
            girder_job_type="sums",
            girder_job_public=True,
            girder_job_other_fields={"meta": {"n": 5}},
        ),
        "download": tasks.size.delay(girder_io.GirderFileId(file_id)),
        "upload to a folder": tasks.writes_file.delay(path, "one", girder_result_hooks=[to_folder]),
        "upload to an item": tasks.writes_file.delay(path, "two", girder_result_hooks=[to_item]),
        "parent": tasks.starts_child.delay(4),
        "retry": tasks.tries_again.delay(1, 0.0),
        "last of a chain": chain(
            tasks.add.s(1, 2), tasks.add.s(3), tasks.fibonacci.s()
        ).apply_async(),
    }
    middle = results["last of a chain"].parent
    results |= {"middle of a chain": middle, "first of a chain": middle.parent}
    together = group(tasks.add.s(n, n) for n in range(3)).apply_async()
    results |= {f"of a group, {n}": result for n, result in enumerate(together.results)}
    kinds = ("plain", "options", "download", "retry", "last of a chain")
    values = {kind: results[kind].get(timeout=120) for kind in kinds}
    values["group"] = together.get(timeout=120)
    by_name = app.send_task("their_tasks.tasks.add", (1, 1))
    values["by name"] = by_name.get(timeout=120)
    return {"ids": {kind: str(result.id) for kind, result in results.items()}, "values": values}


def schedule(task: str, *args: Any) -> str:
    """Schedule a job for the handler of girder_worker's plugin, and return the job's id."""
    from girder.api.rest import getCurrentUser
    from girder_jobs.models.job import Job

    job = Job().createJob(
        title="Scheduled",
        type="scheduled",
        handler="worker_handler",
        user=getCurrentUser(),
        args=args,
        otherFields={"celeryTaskName": f"their_tasks.tasks.{task}"},
    )
    Job().scheduleJob(job)
    return str(job["_id"])


def job_of(site: SwitchSite, task_id: str) -> str:
    """Return the only job with an id of Celery, once there is one."""
    (job,) = wait_until(lambda: site.documents("job", {"celeryTaskId": task_id}))
    return str(job["_id"])


def shown(site: SwitchSite, job_id: str) -> dict[str, Any]:
    """Return what users see of a job that has ended."""
    job = site.wait(job_id, WAIT_S)
    lines = [line for line in site.log(job_id).splitlines() if not line.startswith(_OWN_LINES)]
    if job["status"] == JobStatus.ERROR:
        lines = sorted(_OF_ERROR & set(lines))
    parent = job.get("parentId") and site.job(job["parentId"])
    progress = job.get("progress") or {}
    return {
        **{name: job.get(name) for name in _FIELDS},
        "progress": {name: progress.get(name) for name in ("total", "current", "message")},
        "parent": parent and (parent["title"], parent["args"]),
        "log": lines,
    }


def cancel(site: SwitchSite, user: User, *, running: bool) -> str:
    """Cancel a job while it runs, or before it may start, and return its id."""
    if running:
        job_id = site.delay("waits", user=user)
        site.wait(job_id, status=JobStatus.RUNNING)
    else:
        job_id = site.delay("waits", user=user, countdown=60)
    user.client.put(f"job/{job_id}/cancel")
    return job_id


def files_of(client: Any, item_id: str) -> list[tuple[str, bytes]]:
    files = client.listFile(item_id)
    return [(f["name"], b"".join(client.downloadFileAsIterator(f["_id"]))) for f in files]


def outputs(site: SwitchSite, user: User, path: Path) -> dict[str, Any]:
    """Run jobs of all kinds, and return what they leave."""
    client = user.client
    file = site.upload(b"n" * 17, client=client)
    folder = client.createFolder(user.folder["_id"], secrets.token_hex(4))
    item = client.createItem(folder["_id"], "item")
    started = site.call(
        start_all, file["_id"], folder["_id"], item["_id"], str(path / "result.txt"), user=user
    )
    jobs = {kind: job_of(site, task_id) for kind, task_id in started["ids"].items()}
    (child,) = wait_until(lambda: site.children(jobs["parent"]))
    jobs["child"] = str(child["_id"])
    jobs["scheduled"] = site.call(schedule, "fibonacci", 4, user=user)
    jobs["canceled while it ran"] = cancel(site, user, running=True)
    jobs["canceled before"] = cancel(site, user, running=False)
    found = {kind: shown(site, job_id) for kind, job_id in jobs.items()}
    uploaded = {
        each["name"]: files_of(client, each["_id"]) for each in client.listItem(folder["_id"])
    }
    # The ids of files and folders among the arguments.
    text = {key: repr(value) for key, value in found.items()}
    for name, key in (("file", file), ("folder", folder), ("item", item)):
        text = {kind: each.replace(key["_id"], name) for kind, each in text.items()}
    return {"jobs": text, "values": started["values"], "uploaded": uploaded}


def test_jobs_leave_the_same_on_rabbitmq_and_on_dask(
    switch_site: SwitchSite, tmp_path: Path
) -> None:
    user = switch_site.create_user()
    switch_site.switch("RabbitMQ")
    on_rabbitmq = outputs(switch_site, user, tmp_path)
    jobs = switch_site.documents("job", {"userId": ObjectId(user.id)})
    assert "dask_handler" not in {job["handler"] for job in jobs}
    switch_site.switch("Dask")
    on_dask = outputs(switch_site, user, tmp_path)
    assert on_dask == on_rabbitmq
    assert on_dask["values"] == {
        "plain": 42,
        "options": 5,
        "download": 17,
        "retry": 1,
        "last of a chain": 8,
        "group": [0, 2, 4],
        "by name": 2,
    }
    assert on_dask["uploaded"] == {
        "item": [("result.txt", b"two")],
        "result.txt": [("result.txt", b"one")],
    }


def start_waiting(path: str) -> dict[str, str]:
    """Start a task that waits for a file, and others after it. Return Celery's ids by kind."""
    from celery import chain
    from their_tasks.tasks import says_where

    results = {"first": says_where.delay(path=path), "plain": says_where.delay()}
    results |= {kind: says_where.delay() for kind in CANCELED}
    results["end of a chain"] = chain(says_where.s(), says_where.s()).apply_async()
    results["begin of a chain"] = results["end of a chain"].parent
    return {kind: str(result.id) for kind, result in results.items()}


class Waiting:
    """Jobs of all kinds that wait behind a task which waits for a file."""

    def __init__(self, site: SwitchSite, user: User, path: Path) -> None:
        self.site = site
        self.user = user
        self._path = path
        self._task_ids: dict[str, str] = site.call(start_waiting, str(path), user=user)
        self._last = self._task_ids.pop("end of a chain")
        self.jobs = {kind: job_of(site, task_id) for kind, task_id in self._task_ids.items()}
        self.jobs["scheduled"] = site.call(schedule, "says_where", user=user)
        site.wait(self.jobs["first"], WAIT_S, status=JobStatus.RUNNING)

    def logs(self, *but: str) -> set[str]:
        """Return the logs of the jobs but those of some kinds."""
        return {self.site.log(job_id) for kind, job_id in self.jobs.items() if kind not in but}

    def cancel(self, kind: str) -> None:
        """Cancel one of the jobs."""
        self.user.client.put(f"job/{self.jobs[kind]}/cancel")

    def release(self) -> None:
        """Let the jobs run, and wait until all have ended as they should."""
        self._path.touch()
        for kind, job_id in self.jobs.items():
            expected = JobStatus.CANCELED if kind in CANCELED else JobStatus.SUCCESS
            self.site.wait(job_id, WAIT_S, status=expected)
        self.jobs["end of a chain"] = job_of(self.site, self._last)
        self.site.wait(self.jobs["end of a chain"], status=JobStatus.SUCCESS)


def test_jobs_that_wait_at_a_switch_end_where_they_were_sent(
    switch_site: SwitchSite, tmp_path: Path
) -> None:
    """RabbitMQ, then Dask, then RabbitMQ again."""
    site, user = switch_site, switch_site.create_user()
    before, after = CANCELED
    site.switch("RabbitMQ")
    on_rabbitmq = Waiting(site, user, tmp_path / "first")
    on_rabbitmq.cancel(before)

    site.switch("Dask")
    dask = where(site, user)
    assert dask.startswith("dask@")
    assert on_rabbitmq.logs("first") == {""}
    on_rabbitmq.cancel(after)
    on_rabbitmq.release()
    on_dask = Waiting(site, user, tmp_path / "second")
    on_dask.cancel(before)

    site.switch("RabbitMQ")
    celery = where(site, user)
    assert celery.startswith("celery@")
    assert on_rabbitmq.logs(*CANCELED) == {celery}
    assert site.log(on_rabbitmq.jobs[before]) == ""
    # Girder on Dask cannot revoke what RabbitMQ has: the task runs, whatever the state of its job.
    assert celery in site.log(on_rabbitmq.jobs[after])
    assert on_dask.logs("first", before) == {""}
    on_dask.cancel(after)
    on_dask.release()
    assert on_dask.logs(*CANCELED) == {dask}
    assert not any("dask@" in site.log(on_dask.jobs[kind]) for kind in CANCELED)


def where(site: SwitchSite, user: User) -> str:
    """Return the log of a task that prints where it runs."""
    job_id = site.delay("says_where", user=user)
    site.wait(job_id, WAIT_S, status=JobStatus.SUCCESS)
    return site.log(job_id)
