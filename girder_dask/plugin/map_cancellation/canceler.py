"""The thread that cancels the jobs of large maps, step by step.

Whoever cancels such a map marks its parent, wakes the thread, and need not wait. What a process of
Girder leaves undone, another one or the next one finds: an unfinished cancellation is in the
database.
"""

from __future__ import annotations

import logging

from bson import ObjectId
from pymongo.errors import PyMongoError

from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.map_cancellation import steps
from girder_dask.plugin.store import cancellation
from girder_dask.plugin.store.maps import large_maps, parents
from girder_dask.utils.background import Guard, start_thread_once

__all__ = ["SCAN_INTERVAL_S", "MapCanceler"]

logger = logging.getLogger(__name__)

#: Seconds between two scans for maps that another process has left.
SCAN_INTERVAL_S = 30.0

_THREAD_NAME = "girder-dask-map-canceler"


class MapCanceler:
    """The cancellation of large maps.

    Parameters
    ----------
    backend
        Reaches the scheduler.
    """

    def __init__(self, backend: GirderBackend) -> None:
        self._backend = backend
        # Whether the scheduler was told, by the parents of the maps.
        self._begun: dict[ObjectId, bool] = {}
        self._guard = Guard(
            logger, "The cancellation of maps", expected=(PyMongoError,), max_delay_s=10.0
        )

    def start(self) -> None:
        """Start the thread, once in a process."""
        start_thread_once(_THREAD_NAME, self._run)

    def _run(self) -> None:
        large_maps.work.set()  # an earlier process may have left something
        while True:
            large_maps.work.wait(self._guard.delay_s or SCAN_INTERVAL_S)
            large_maps.work.clear()
            with self._guard:
                self.cancel_all()

    def cancel_all(self) -> None:
        """Cancel the jobs of all canceled maps, with a step for each map in turn."""
        finished: set[ObjectId] = set()
        while self._step(finished):
            pass

    def _step(self, finished: set[ObjectId]) -> bool:
        """Cancel some jobs of each map that is not finished. Return True if there may be more."""
        left_behind = large_maps.find_left_behind()
        unfinished = [*large_maps.find_unfinished(), *left_behind]
        # Those that were begun stay, even if they have ended, until what their jobs have started is
        # canceled too.
        for parent in [*large_maps.take_canceled(), *unfinished]:
            self._begun.setdefault(parent, False)
        found = False
        for parent in self._begun.keys() - finished:
            if not self._begun[parent]:
                self._tell(parent)
            if steps.cancel_some(parent, self._backend.ask_scheduler):
                found = True
                continue
            self._finish(parent, is_deleted=parent in left_behind)
            finished.add(parent)
            if parent not in unfinished or parent in left_behind:
                del self._begun[parent]
        return found

    def _tell(self, parent: ObjectId) -> None:
        """Tell the scheduler to end all jobs that it has of a map, before Girder records that."""
        for ids in steps.claimed_ids(parent):
            self._backend.tell_canceled(ids)
        self._begun[parent] = True

    def _finish(self, parent: ObjectId, *, is_deleted: bool) -> None:
        """Cancel what this plugin does not run of a map, and what its jobs have started."""
        steps.cancel_foreign(parent)
        for job_id in steps.descendants(parent):
            self._backend.tell_canceled(
                cancellation.cancel_children(job_id, self._backend.ask_scheduler)
            )
        if is_deleted:
            large_maps.forget(parent)
        else:
            parents.recount_parents_of([{"parentId": parent}])
