"""A stack whose Girder runs girder_worker's tasks on Dask, and starts those of ``their_tasks``."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pymongo
from bson import ObjectId

from girder_dask.celery import BROKER_URL
from girder_dask.jobs import JobStatus
from girder_dask.standalone import programs
from girder_dask.testing.stack import TestStack, User

__all__ = ["CelerySite", "wait_until"]


class CelerySite(TestStack):
    """A stack with the switch that a site sets, and nothing more."""

    def __init__(self, directory: Path, **options: Any) -> None:
        girder_env = {"GIRDER_WORKER_BROKER": BROKER_URL, **options.pop("girder_env", {})}
        options = {"workers": 1, "threads": 4, **options}
        super().__init__(directory, girder_env=girder_env, **options)

    def delay(self, name: str, *args: Any, user: User | None = None, **options: Any) -> str:
        """Start a task of ``their_tasks`` inside a request, and return the id of its job.

        The options are those of ``apply_async``.
        """
        return str(self.call(_apply_async, name, args, options, user=user))

    def wait(
        self, job_id: str, timeout: float = 90, status: JobStatus | int | None = None
    ) -> dict[str, Any]:
        """Wait for the end of a job, also while a worker starts on a slow machine."""
        __tracebackhide__ = True
        return super().wait(job_id, timeout, status)

    def start_by_name(self, task: str, *args: Any) -> str:
        """Start a task that Girder knows by its name alone, and return the id of its job."""
        task_id = self.call(_send_task, task, args)
        (job,) = self.documents("job", {"celeryTaskId": task_id})
        return str(job["_id"])

    @contextlib.contextmanager
    def processes(self) -> Iterator[None]:
        """Have the worker run each job in a process of its own (girder.worker.isolation)."""
        from distributed import Client

        def isolate(isolation: str, dask_worker: Any = None) -> None:
            dask_worker.plugins["girder-dask"].context.isolation = isolation

        with Client(self.scheduler, set_as_default=False) as client:
            client.run(isolate, "process")
            try:
                yield
            finally:
                client.run(isolate, "thread")

    @contextlib.contextmanager
    def queue_worker(
        self, queue: str, directory: Path, environment: Mapping[str, str]
    ) -> Iterator[Path]:
        """Run a worker that serves a queue alone, and yield the path of its log.

        Parameters
        ----------
        directory
            The directory of the worker.
        environment
            Variables besides those of this process.
        """
        directory.mkdir(exist_ok=True)
        command = programs.worker(self.scheduler, f"of-{queue}", 2, directory)
        log = directory / "log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, "--resources", f"queue:{queue}=2"],
                env={**os.environ, **environment},
                cwd=directory,
                stdout=file,
                stderr=file,
            )
            try:
                yield log
            finally:
                process.terminate()
                process.wait(30)

    def value(self, job_id: str) -> Any:
        """Return what the task of a job has returned."""
        from girder_dask.client.celery_messages import read_stored
        from girder_dask.protocol.payload import open_value

        stored = read_stored(self.admin.get(f"dask/job/{job_id}/result"))
        return None if stored.value is None else open_value(stored.value, unpickle=False)

    def children(self, job_id: str) -> list[dict[str, Any]]:
        """Return the stored jobs that a job has started, the oldest first."""
        return self.documents("job", {"parentId": ObjectId(job_id)})

    def documents(self, collection: str, query: dict[str, Any] | None = None) -> list[Any]:
        """Return documents as they are in the database, the oldest first."""
        with contextlib.closing(pymongo.MongoClient(self.mongo)) as client:
            found = client.get_default_database()[collection]
            return list(found.find(query or {}, sort=[("created", 1), ("_id", 1)]))

    def collections(self) -> list[str]:
        """Return the names of all collections of Girder's database."""
        with contextlib.closing(pymongo.MongoClient(self.mongo)) as client:
            return sorted(client.get_default_database().list_collection_names())


def _apply_async(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    import their_tasks.tasks

    result = getattr(their_tasks.tasks, name).apply_async(args, **options)
    return str(result.job["_id"])


def _send_task(task: str, args: tuple[Any, ...]) -> str:
    from girder_worker.app import app

    return str(app.send_task(task, args).id)


def wait_until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Return what a condition returns once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)
    return found
