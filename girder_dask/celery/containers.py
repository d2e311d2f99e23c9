"""Containers that a task of girder_worker starts with docker-py, and their end with its run."""

from __future__ import annotations

import functools
import logging
import threading
from typing import Any

from girder_dask.celery.run_state import RunState, current_run

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
    def create_container_from_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        created = original(self, *args, **kwargs)
        state = current_run()
        # docker_run starts another container in a thread that goes on after it, to clean up.
        if state is not None and state.thread_id == threading.get_ident():
            state.containers.append((self, created["Id"]))
        return created

    create_container_from_config.tracks_containers = True  # type: ignore[attr-defined]
    APIClient.create_container_from_config = create_container_from_config


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
