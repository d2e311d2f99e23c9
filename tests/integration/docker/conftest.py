"""Workers of the stack with Docker, and with Podman."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.docker_engine import Engine, worker_settings


class Containers:
    """Container tasks on the workers of a stack."""

    def __init__(self, stack: Any, engine: Engine) -> None:
        self.stack = stack
        self.engine = engine

    def start(
        self, script: str, *args: Any, user: Any = None, options: Any = None, **more: Any
    ) -> str:
        """Start a container with a script of the shell, and return the id of its job.

        ``options`` are those of the job; ``args`` become ``$1`` and so on.
        """

        def start_it() -> str:
            from girder_dask.docker import run

            command = ["-c", script, "script", *args]
            call = ("busybox:latest", command)
            named = {"entrypoint": "/bin/sh", **more}
            return str(run.apply_async(call, named, **(options or {})).id)

        return str(self.stack.call(start_it, user=user))

    def wait(self, job_id: str, status: int | None = None) -> dict[str, Any]:
        """Wait for the end of a job, after which no container is left. Return the job."""
        job = dict(self.stack.wait(job_id, timeout=60, status=status))
        assert self.engine.containers() == []
        assert self.engine.volumes() == []
        return job

    def log(self, job_id: str) -> str:
        """Return the log of a job."""
        return str(self.stack.log(job_id))


@pytest.fixture
def docker(girder_stack: Any, docker_engine: Engine) -> Iterator[Containers]:
    """Workers with Docker."""
    with worker_settings(girder_stack, {"DOCKER_HOST": docker_engine.url}):
        yield Containers(girder_stack, docker_engine)


@pytest.fixture
def podman(girder_stack: Any, podman_engine: Engine) -> Iterator[Containers]:
    """Workers with Podman."""
    variables = {"CONTAINER_HOST": podman_engine.url}
    with worker_settings(girder_stack, variables, {"girder.docker.engine": "podman"}):
        yield Containers(girder_stack, podman_engine)


@pytest.fixture(params=["docker", "podman"])
def containers(request: pytest.FixtureRequest) -> Containers:
    """Workers with each of the engines."""
    found: Containers = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def settings(girder_stack: Any) -> Iterator[Callable[..., None]]:
    """Change settings ``girder.docker`` of the workers until the end of the test."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def change(**values: Any) -> None:
            named = {f"girder.docker.{name}": value for name, value in values.items()}
            stack.enter_context(worker_settings(girder_stack, {}, named))

        yield change
