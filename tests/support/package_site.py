"""A stack with packages of girder_worker's tasks from PyPI, unmodified, and a container engine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from girder_dask.jobs import JobStatus
from tests.support.celery_site import CelerySite, wait_until
from tests.support.docker_engine import IMAGE, Engine

__all__ = ["PACKAGES", "PackageSite"]

#: Where ``scripts/bootstrap test`` installs what tests/packages/from-pypi.txt lists.
PACKAGES = Path(sys.prefix) / "from-pypi"


class PackageSite(CelerySite):
    """A stack whose Girder and worker have the packages, and whose worker has a Docker engine.

    Attributes
    ----------
    engine
        The engine.
    temporary
        The directory for temporary files of the worker.
    """

    def __init__(self, directory: Path, engine: Engine, **options: Any) -> None:
        self.engine = engine
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self._directory_of_local = directory / "local"
        paths = [str(PACKAGES), os.environ.get("PYTHONPATH", "")]
        env = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        worker_env = {
            "DOCKER_HOST": engine.url,
            "TMPDIR": str(self.temporary),
            **options.pop("worker_env", {}),
        }
        self._variables = {**env, **worker_env}
        super().__init__(directory / "stack", env=env, worker_env=worker_env, **options)

    def require(self, package: str) -> None:
        """Skip the test unless a package is installed where Girder and the worker find it."""
        if not (PACKAGES / package).is_dir():
            pytest.skip(f"This test needs {package}. To install it: scripts/bootstrap test")

    @contextlib.contextmanager
    def local_worker(self) -> Iterator[None]:
        """Run a worker for the queue ``local``, which has Girder's database."""
        environment = {
            **self._variables,
            "GIRDER_MONGO_URI": self.mongo,
            "GIRDER_NOTIFICATION_REDIS_URL": self.redis,
        }
        with self.queue_worker("local", self._directory_of_local, environment):
            yield

    def task_processes(self) -> list[int]:
        """Return the ids of the processes of the tasks that run in their own."""
        from distributed import Client

        def read(dask_worker: Any = None) -> list[int]:
            runs = dask_worker.plugins["girder-dask"].context.runs.values()
            return [run.process._task_pid for run in runs if run.process is not None]

        with Client(self.scheduler, set_as_default=False) as client:
            return [pid for pids in client.run(read).values() for pid in pids]

    def docker_run(self, make: Callable[..., dict[str, Any]], *args: Any, user: Any = None) -> str:
        """Start ``docker_run`` with busybox, and return the id of its job.

        Parameters
        ----------
        make
            Returns the other keyword arguments, and the time limits of the call. It is called
            inside Girder with ``args``.
        """
        return str(self.call(_docker_run, make, args, IMAGE, user=user))

    def run_container(
        self,
        make: Callable[..., dict[str, Any]],
        *args: Any,
        user: Any = None,
        status: JobStatus = JobStatus.SUCCESS,
    ) -> str:
        """Run ``docker_run`` with busybox until its job ends, and return the job's id."""
        job_id = self.docker_run(make, *args, user=user)
        self.wait(job_id, 90, status=status)
        return job_id

    def container_log(self, job_id: str) -> str:
        """Return the log of a job without the line in which girder_worker says what it runs."""
        lines = self.log(job_id).splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("Running container: "))

    def tokens_of(self, job_id: str) -> list[str]:
        """Return the tokens that the stored documents of a job contain."""
        key = ObjectId(job_id)
        collections = ("job", "dask_job", "dask_payload")
        text = "".join(repr(self.documents(name, {"_id": key})) for name in collections)
        return [each["_id"] for each in self.documents("token") if each["_id"] in text]

    def temporary_files(self) -> set[str]:
        """Return the names of the temporary files of tasks."""
        names = {path.name for path in self.temporary.iterdir()}
        return {name for name in names if not name.startswith("girder-dask-")}

    def check_nothing_left(self, before: set[str]) -> None:
        """Wait until the engine has no container, and no temporary file that was not there before.

        Packages keep some of their own, as long as the worker runs.
        """
        wait_until(lambda: not self.engine.containers())
        wait_until(lambda: not self.engine.volumes())
        wait_until(lambda: self.temporary_files() <= before)


def _docker_run(make: Callable[..., dict[str, Any]], args: tuple[Any, ...], image: str) -> str:
    from girder_worker.docker.tasks import docker_run

    options = {"pull_image": False, "network_mode": "none", **make(*args)}
    limits = {name: options.pop(name, None) for name in ("time_limit", "soft_time_limit")}
    return str(docker_run.apply_async((image,), options, **limits).job["_id"])
