"""Jobs that Dask should have and has not.

Nothing tells the scheduler of a job that was lost on the way to Dask, as with a connection of
its own that broke. The job would be QUEUED for ever. To give it to Dask again does no harm if it is
still on its way, since Dask takes a key once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from girder_dask.scheduler.job_state import JobState

__all__ = ["DaskReconciler"]

logger = logging.getLogger(__name__)


class DaskReconciler:
    """Finds jobs that Dask has not at two looks, one after the other.

    Parameters
    ----------
    hands
        The jobs in hand, by the keys under which Dask should have them.
    has
        Says whether Dask has a key.
    give
        Called with the jobs that are to be given to Dask again, under the same keys.

    Examples
    --------
    >>> from girder_dask.jobs import JobSpec
    >>> spec = JobSpec(id='5f3c', attempt=1, task='coins:count')
    >>> given = []
    >>> missing = DaskReconciler({spec.key: JobState(spec, 1, 1)}, lambda key: False, given.extend)
    >>> missing.look()
    >>> missing.look()
    >>> [job.spec.key for job in given]
    ['count-5f3c-1']
    """

    def __init__(
        self,
        jobs: Mapping[str, JobState],
        has: Callable[[str], bool],
        give: Callable[[Sequence[JobState]], None],
    ) -> None:
        self._jobs = jobs
        self._has = has
        self._give = give
        self._before: set[str] = set()

    def look(self) -> None:
        """Look for them. Long after the last look: thousands of jobs may be on their way."""
        found = {
            key: job for key, job in self._jobs.items() if job.is_on_its_way and not self._has(key)
        }
        again = [job for key, job in found.items() if key in self._before]
        self._before = set(found)
        if again:
            logger.warning("Dask does not have %d jobs; they are given to it again", len(again))
            self._give(again)
