"""Containers that a task of girder_worker starts with docker-py, and their end with its run.

They have the labels of :mod:`girder_dask.docker.leftovers`, so a container is removed also if the
process of its task, or the worker, is killed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Mapping
from typing import Any

from girder_dask.celery.docker_output import EarlyAttachment
from girder_dask.celery.run_state import RunState, current_run
from girder_dask.docker.leftovers import labels_of

__all__ = ["remove_running", "track_containers"]

logger = logging.getLogger(__name__)


def track_containers() -> None:
    """Have docker-py record the containers that a task creates in its own thread.

    Without docker-py, nothing is changed.
    """
    try:
        from docker.api.client import APIClient
    except ImportError:
        return
    original = APIClient.create_container_from_config
    if getattr(original, "tracks_containers", False):
        return

    @functools.wraps(original)
    def create_container_from_config(
        self: Any, config: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        state = current_run()
        if state is None:
            return original(self, config, *args, **kwargs)
        # docker_run starts another container in a thread that goes on after it, to clean up.
        is_own = state.thread_id == threading.get_ident()
        created = original(self, _labeled(config, state, is_own=is_own), *args, **kwargs)
        if is_own:
            state.containers.append((self, created["Id"]))
            if state.reads_output:
                state.attachments.append(EarlyAttachment(self, created["Id"]))
            _record_image(self, created["Id"], str(config.get("Image")), state)
        return created

    create_container_from_config.tracks_containers = True  # type: ignore[attr-defined]
    APIClient.create_container_from_config = create_container_from_config


def _labeled(config: Mapping[str, Any], state: RunState, *, is_own: bool) -> dict[str, Any]:
    """Return the configuration of a container with our labels: of the run, or of the worker."""
    scope = state.job.container_scope
    if scope is None or (is_own and state.keeps_containers):
        return dict(config)
    ours = labels_of(scope if is_own else None, scope.owner)
    return {**config, "Labels": {**(config.get("Labels") or {}), **ours}}


def _record_image(client: Any, container: str, name: str, state: RunState) -> None:
    """Record on the job which image a container has. Then the end of the run looks for it."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    digest = ""
    with contextlib.suppress(DockerException, RequestException, KeyError, TypeError):
        found = client.inspect_image(client.inspect_container(container)["Image"])
        digest = str((found.get("RepoDigests") or [found["Id"]])[0])
    state.job.job_manager.record_image(name, digest)


def remove_running(state: RunState) -> None:
    """Remove those containers of a run that still run.

    A canceled ``docker_run`` waits until its container has stopped. If the container ignores
    SIGTERM, that takes longer than the grace of the job, whose interruption ends the wait; so does
    a time limit.
    """
    from docker.errors import APIError, NotFound
    from requests.exceptions import RequestException

    for client, container in state.containers:
        try:
            if client.inspect_container(container)["State"]["Running"]:
                client.remove_container(container, force=True, v=True)
        except NotFound:
            continue
        except (APIError, RequestException):
            logger.warning("The container %s of job %s is left", container, state.job.id)
