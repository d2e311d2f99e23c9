"""Removal of containers that runs have left behind, and those of workers that have died."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from girder_dask.docker import engines
from girder_dask.docker.container import remove
from girder_dask.docker.engine_api import EngineApi
from girder_dask.docker.settings import ContainerSettings
from girder_dask.errors import ContainerError, GirderDaskError
from girder_dask.tasks.container_scope import ContainerScope
from girder_dask.utils.process_identity import has_ended

__all__ = ["labels_of", "remove_of_dead_workers", "remove_of_run"]

logger = logging.getLogger(__name__)

_JOB, _ATTEMPT, _OWNER = "girder_dask.job", "girder_dask.attempt", "girder_dask.owner"


def labels_of(scope: ContainerScope | None, owner: str) -> dict[str, str]:
    """Return the labels of a container, by which it is found again."""
    if scope is None:
        return {_OWNER: owner}
    return {_OWNER: scope.owner, _JOB: scope.job_id, _ATTEMPT: str(scope.attempt)}


def remove_of_run(scope: ContainerScope) -> None:
    """Remove the containers that a run has left, for example because its process was killed.

    Raises
    ------
    GirderDaskError
        If the engine does not answer, or does not remove one of them.
    """
    api = _engine()
    if api is not None:
        labels = labels_of(scope, scope.owner)
        for each in _containers(api, [f"{name}={value}" for name, value in labels.items()]):
            remove(api, str(each["Id"]))


def remove_of_dead_workers() -> int:
    """Remove the containers of workers of this host that have ended, and return their number.

    Errors are only logged: a worker needs no engine.
    """
    removed = 0
    try:
        api = _engine()
        for each in [] if api is None else _containers(api, [_OWNER]):
            labels = each.get("Labels") or {}
            if has_ended(str(labels.get(_OWNER, ""))):
                job = labels.get(_JOB, "?")
                logger.warning(
                    "Container %s of job %s is removed: its worker has ended", each["Id"][:12], job
                )
                remove(api, str(each["Id"]))
                removed += 1
    except (GirderDaskError, KeyError, TypeError, ValueError) as e:
        logger.info("Containers of earlier workers cannot be looked for: %s", e)
    return removed


def _engine() -> Any:
    """Return the API of the engine, None if this worker has none with a socket."""
    try:
        choice = engines.choose(ContainerSettings.read().engine)
    except ContainerError:
        return None
    return None if choice.socket is None else EngineApi(choice.socket)


def _containers(api: EngineApi, labels: list[str]) -> list[Mapping[str, Any]]:
    query = {"all": "1", "filters": json.dumps({"label": labels})}
    return list(api.call("GET", "/containers/json", query=query))
