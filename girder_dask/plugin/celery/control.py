"""Answers to Celery's commands for workers, from what the scheduler knows of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from girder_dask._version import __version__
from girder_dask.plugin.backend import GirderBackend
from girder_dask.protocol.celery_message import DEFAULT_QUEUE, QUEUE_RESOURCE_PREFIX

__all__ = ["answers"]

# Celery waits one second for an answer, and status pages send five commands.
_TIMEOUT_S = 0.5

# A worker that stands for the queue in Girder, which is durable.
_DURABLE = "dask@girder"
_LOCAL_QUEUE = "local"


def answers(backend: GirderBackend, method: str) -> dict[str, Any]:
    """Return the answers of all workers to a command, by the names of the workers.

    A task for a queue that no worker serves waits in Girder. So ``local`` is always served: Girder
    asks for it before it sends such a task, and would remember "no" for an hour.
    """
    workers = backend.scheduler_workers(_TIMEOUT_S)
    found = {f"dask@{worker['name']}": _answer(method, worker) for worker in workers}
    if method in ("stats", "active_queues"):
        durable = {"nthreads": 0, "resources": {f"{QUEUE_RESOURCE_PREFIX}{_LOCAL_QUEUE}": 1}}
        found[_DURABLE] = _answer(method, durable)
    return found


def _answer(method: str, worker: Mapping[str, Any]) -> Any:
    if method == "stats":
        return {"pool": {"max-concurrency": worker["nthreads"]}, "total": {}}
    if method == "ping":
        return {"ok": "pong"}
    if method == "report":
        return {"ok": f"girder_dask {__version__} on Dask"}
    if method == "active_queues":
        return [{"name": name} for name in _queues(worker["resources"])]
    if method in ("active", "reserved"):
        return [_task(job) for job in worker.get(method, ())]
    return []


def _queues(resources: Mapping[str, Any]) -> list[str]:
    """Return the queues of a worker: those that it names, or the default one."""
    named = [
        name.removeprefix(QUEUE_RESOURCE_PREFIX)
        for name in resources
        if name.startswith(QUEUE_RESOURCE_PREFIX)
    ]
    return named or [DEFAULT_QUEUE]


def _task(job: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": job["id"], "name": job["task"], "type": job["task"], "args": [], "kwargs": {}}
