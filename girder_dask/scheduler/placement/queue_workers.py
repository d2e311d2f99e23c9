"""Workers that serve named queues, and no other task.

A worker that offers resources ``queue:NAME`` serves these queues, and tasks without a queue only if
it offers ``queue:celery`` too. Dask knows no such rule: a task that asks for nothing may go to any
worker. So while such a worker is connected, the other tasks, also those of plain Dask, are
restricted to the general workers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from distributed import Scheduler

from girder_dask.protocol.celery_message import DEFAULT_QUEUE, QUEUE_RESOURCE_PREFIX
from girder_dask.utils.background import Guard

__all__ = ["QueueWorkers", "serves_queues_only"]

logger = logging.getLogger(__name__)

# In the set of general workers when there are none: Dask takes an empty set for no restriction.
_NOBODY = "girder-dask-no-worker"
_UNASSIGNED_STATES = frozenset({"released", "waiting", "queued", "no-worker"})


def serves_queues_only(resources: Mapping[str, Any]) -> bool:
    """Return True if a worker with these resources serves only tasks that name its queues.

    >>> serves_queues_only({"queue:local": 1}), serves_queues_only({"GPU": 1})
    (True, False)
    >>> serves_queues_only({"queue:local": 1, "queue:celery": 4})
    False
    """
    names = [name for name in resources if name.startswith(QUEUE_RESOURCE_PREFIX)]
    return bool(names) and f"{QUEUE_RESOURCE_PREFIX}{DEFAULT_QUEUE}" not in names


class QueueWorkers:
    """The workers of queues, and the restriction of other tasks to the general workers.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._of_queues: set[str] = set()
        # Tasks hold this set itself, so that it is always up to date.
        self._general = {_NOBODY}
        self._guard = Guard(logger, "Keeping tasks off the workers of queues")

    def on_joined(self, worker: str) -> None:
        """Record a worker. With the first of a queue, waiting tasks are restricted."""
        with self._guard:
            if not serves_queues_only(self._scheduler.workers[worker].resources):
                self._general.add(worker)
                return
            is_first = not self._of_queues
            self._of_queues.add(worker)
            if is_first:
                self._restrict_waiting()

    def on_left(self, worker: str) -> None:
        """Remove a worker. Its tasks stay restricted, which does no harm."""
        self._of_queues.discard(worker)
        self._general.discard(worker)

    def restrict(self, keys: Iterable[Any]) -> None:
        """Restrict new tasks that name no queue, if there is a worker of a queue."""
        if not self._of_queues:
            return
        with self._guard:
            for key in keys:
                ts = self._scheduler.tasks.get(key)
                if ts is not None:
                    self._restrict(ts)

    def _restrict(self, ts: Any) -> bool:
        if ts.worker_restrictions or ts.host_restrictions or _names_queue(ts):
            return False
        ts.worker_restrictions = self._general
        return True

    def _restrict_waiting(self) -> None:
        tasks = [ts for ts in self._scheduler.tasks.values() if ts.state in _UNASSIGNED_STATES]
        # From Dask's own queue a task goes to any worker, so restricted ones leave it.
        queued = [ts.key for ts in tasks if self._restrict(ts) and ts.state == "queued"]
        if queued:
            self._scheduler.transitions(
                dict.fromkeys(queued, "released"), stimulus_id="girder-dask-queue-worker"
            )


def _names_queue(ts: Any) -> bool:
    names = ts.resource_restrictions or ()
    return any(name.startswith(QUEUE_RESOURCE_PREFIX) for name in names)
