"""Reconciliation of the scheduler's jobs with Girder's list of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from girder_dask.http.scheduler_api import HeldJob
from girder_dask.scheduler.job_state import JobTable

__all__ = ["GirderReconciler"]


class GirderReconciler:
    """Comparison of Girder's list of this scheduler's jobs with its own, page by page.

    A scheduler removes a job when Girder has acknowledged its end. A database that crashes may
    lose what it acknowledged just before, and then shows the job as running for ever. So the
    scheduler asks Girder, in rounds of pages, for the jobs that it is believed to have, and
    reports those that it lacks. Girder begins a new attempt only of a job that has not changed
    meanwhile.

    Parameters
    ----------
    jobs
        The table of jobs.
    interval_s
        Seconds between the end of one round and the beginning of the next.
    clock
        A monotonic clock, in seconds.

    Examples
    --------
    >>> reconciler = GirderReconciler(JobTable(), interval_s=60.0)
    >>> reconciler.page_after, reconciler.missing()
    ('', [])
    >>> reconciler.on_page([('a', 1, 5), ('c', 2, 7)])
    >>> reconciler.page_after, reconciler.missing()
    ('c', [('a', 1, 5), ('c', 2, 7)])
    """

    def __init__(
        self, jobs: JobTable, *, interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs = jobs
        self._interval_s = interval_s
        self._clock = clock
        self._last_id = ""
        self._round_begins_at = clock()
        self._candidates: list[HeldJob] = []

    @property
    def page_after(self) -> str | None:
        """The id after which Girder's next page begins, None between two rounds."""
        return self._last_id if self._clock() >= self._round_begins_at else None

    def missing(self) -> list[HeldJob]:
        """Return the jobs of the last page that the scheduler does not have now."""
        return [held for held in self._candidates if held[0] not in self._jobs]

    def on_page(self, page: Sequence[HeldJob] | None) -> None:
        """Handle a page. An empty one ends a round; None means that Girder sent no page."""
        self._candidates = []
        if page is None:
            return
        self._candidates = [(job_id, attempt, sequence) for job_id, attempt, sequence in page]
        self._candidates = self.missing()
        self._last_id = max((job_id for job_id, _, _ in page), default="")
        if not page:
            self._round_begins_at = self._clock() + self._interval_s
