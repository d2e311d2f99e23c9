"""Tasks written for girder_worker, run on Dask: kombu transport, result backend, runner.

girder_worker makes :class:`WorkerPlugin` when ``girder_worker.app`` is imported, in Girder and on
workers, before it reads its configuration. From then on kombu knows the broker ``dask://``.

Only what runs or sends such tasks imports the modules below, which need the extra ``celery``.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

__all__ = ["APP_URL", "BROKER_URL", "WorkerPlugin", "is_chosen", "may_have_jobs"]

_SCHEME = "dask"

#: What ``GIRDER_WORKER_BROKER`` begins with in a Girder that runs girder_worker's tasks on Dask.
BROKER_URL = f"{_SCHEME}://"

#: The address that Celery's app gets. kombu warns of one without a host, which is not used.
APP_URL = f"{BROKER_URL}girder"


class WorkerPlugin:
    """The plugin of girder_worker that makes the broker ``dask://`` known. It has no tasks."""

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 - theirs
        from kombu.transport import TRANSPORT_ALIASES

        TRANSPORT_ALIASES[_SCHEME] = "girder_dask.celery.transport:Transport"

    def task_imports(self) -> list[str]:
        """Return no modules."""
        return []


def is_chosen() -> bool:
    """Return True if this process sends girder_worker's tasks to Dask."""
    return os.environ.get("GIRDER_WORKER_BROKER", "").startswith(BROKER_URL)


@functools.cache
def may_have_jobs() -> bool:
    """Return True if Dask may have jobs of girder_worker's tasks, also from an earlier choice."""
    return is_chosen() or importlib.util.find_spec("girder_plugin_worker") is not None
