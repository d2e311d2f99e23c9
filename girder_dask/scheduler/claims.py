"""Claims of unfinished jobs from Girder, reconciliation, and questions about dependencies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from girder_dask import config
from girder_dask.errors import GirderError
from girder_dask.http.scheduler_api import GirderRequests, HeldJob
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobSpec
from girder_dask.scheduler.dispatcher import Dispatcher
from girder_dask.scheduler.job_state import JobState, JobTable
from girder_dask.scheduler.job_transitions import JobTransitions
from girder_dask.scheduler.lease import SchedulerLease
from girder_dask.utils.background import Guard, repeat

__all__ = ["GirderReconciler", "JobClaims"]

logger = logging.getLogger(__name__)

_MAX_JOBS_PER_REQUEST = 500


class JobClaims:
    """Periodic claims of the jobs that this scheduler lacks, and look-ups of dependencies.

    Parameters
    ----------
    girder
        Makes the requests.
    dispatcher
        Handles the events of jobs.
    transitions
        Reports states again, and knows which dependencies to ask about.
    reconciler
        Compares Girder's list of this scheduler's jobs with the scheduler's own.
    lease
        Decides whether this scheduler leads. One that stands by gets no jobs.
    """

    def __init__(
        self,
        girder: GirderRequests,
        dispatcher: Dispatcher,
        transitions: JobTransitions,
        reconciler: GirderReconciler,
        lease: SchedulerLease,
    ) -> None:
        self._girder = girder
        self._dispatcher = dispatcher
        self._transitions = transitions
        self._dependencies = transitions.dependencies
        self._reconciler = reconciler
        self.lease = lease
        self._interval_s = config.seconds("scheduler.pull-interval")
        #: The id of Girder, None until it has answered.
        self.site: str | None = None
        #: Called when Girder first says that it runs girder_worker's tasks on Dask.
        self.on_celery: Callable[[], None] = lambda: None
        self._knows_of_celery = False
        # Any kind of error may occur, for example with a Girder of another version.
        self._claim_guard = self._guard("Asking Girder for unfinished jobs")
        self._lookup_guard = self._guard("Asking Girder for the inputs of jobs")

    def _guard(self, what: str) -> Guard:
        return Guard(
            logger,
            what,
            expected=(GirderError,),
            first_delay_s=config.seconds("scheduler.retry-delay"),
            max_delay_s=min(self._interval_s, self.lease.interval_s),
        )

    @property
    def error(self) -> str | None:
        """Why the last claim failed, None if it succeeded."""
        return self._claim_guard.error

    async def run(self) -> None:
        """Claim jobs until cancelled."""
        await repeat(self.claim, self._claim_guard)

    async def run_lookups(self) -> None:
        """Look up dependencies until cancelled."""
        await repeat(self.look_up_dependencies, self._lookup_guard)

    async def claim(self) -> float:
        """Claim jobs; return how many seconds later to claim again."""
        missing = self._reconciler.missing()
        page_after = self._reconciler.page_after
        asked_at = time.monotonic()
        try:
            answer = await self._girder.claim(
                _MAX_JOBS_PER_REQUEST, page_after, missing, self.lease.request()
            )
        except BaseException:
            self.lease.on_failure()
            raise
        self.site = answer.get("site")
        if answer.get("celery") and not self._knows_of_celery:
            self._knows_of_celery = True
            self.on_celery()
        self._on_lease(answer.get("lease"))
        if not self.lease.leads:
            return self.lease.interval_s
        self._dispatcher.cancel(answer["cancel"])
        held = answer.get("held")
        self._reconciler.on_page(held)
        # A Girder of an earlier release sends no statuses.
        statuses = answer.get("statuses") or ()
        for job in self._reconciler.outdated(statuses, asked_at) if held is not None else ():
            logger.info("Girder has another state of job %s, which is reported again", job.spec.id)
            self._transitions.report_state(job)
        specs = JobSpec.from_wires(answer["specs"])
        if specs:
            logger.info("Girder had %d unfinished jobs for this scheduler", len(specs))
            self._dispatcher.accept(specs)
        is_complete = not specs and not self._reconciler.missing()
        return min(self._interval_s, self.lease.interval_s) if is_complete else 0.0

    def _on_lease(self, answer: Mapping[str, Any] | None) -> None:
        led = self.lease.leads
        self.lease.on_answer(answer)
        if self.lease.leads and led is False:
            logger.info("The lease of the other scheduler has ended; this one leads now")
        elif not self.lease.leads and led is not False:
            logger.warning(
                "This scheduler stands by: the one at %s leads and runs the jobs of this Girder. "
                "This one takes over if that one stops, or does not renew its lease",
                self.lease.leader,
            )
            for job in list(self._dispatcher.jobs):
                self._dispatcher.on_verdict(job.spec.id, "stale")

    async def look_up_dependencies(self) -> None:
        """Ask Girder about unknown dependencies, if there are new ones or the interval is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await self._dependencies.lookup_needed.wait()
        self._dependencies.lookup_needed.clear()
        ids = self._dependencies.unknown()
        for i in range(0, len(ids), _MAX_JOBS_PER_REQUEST):
            asked = ids[i : i + _MAX_JOBS_PER_REQUEST]
            self._dispatcher.on_dependency_states(asked, await self._girder.states(asked))


class GirderReconciler:
    """Comparison of Girder's list of this scheduler's jobs with its own, page by page.

    A scheduler removes a job when Girder has acknowledged its end. A database that crashes may
    lose what it acknowledged just before, and then shows the job as running for ever. So the
    scheduler asks Girder, in rounds of pages, for the jobs that it is believed to have, and
    reports those that it lacks. Girder begins a new attempt only of a job that has not changed
    meanwhile. A job that Girder shows as queued while it runs, or the other way round, and one
    that runs and is not on the list, are reported again.

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
        self._page: list[HeldJob] = []
        self._listed: set[str] = set()  # in this round
        self._is_last_page = False
        self._round_asked_at: float | None = None
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
        self._page = [(job_id, attempt, sequence) for job_id, attempt, sequence in page or ()]
        self._candidates = self._page
        self._candidates = self.missing()
        self._is_last_page = page is not None and not page
        if page is None:
            return
        self._last_id = max((job_id for job_id, _, _ in page), default="")
        if not page:
            self._round_begins_at = self._clock() + self._interval_s

    def outdated(self, statuses: Sequence[int], asked_at: float) -> list[JobState]:
        """Return the jobs of the last page whose state Girder has lost.

        After the last page of a round, these are also the jobs that run and were on no page,
        because Girder does not have them.

        Parameters
        ----------
        statuses
            Girder's states of the jobs of the page.
        asked_at
            When Girder was asked, by the monotonic clock. What it has recorded since then is not
            in its answer.
        """
        found = []
        self._listed.update(job_id for job_id, _, _ in self._page)
        self._round_asked_at = self._round_asked_at or asked_at
        for (job_id, _, _), status in zip(self._page, statuses, strict=False):
            job = self._jobs.get(job_id)
            if job is None or job.recorded_at >= asked_at:
                continue
            if (status == JobStatus.QUEUED) != (job.status == JobStatus.QUEUED):
                found.append(job)
        if self._is_last_page:
            found += self._unlisted(self._round_asked_at)
            self._round_asked_at = None
            self._listed.clear()
        return found

    def _unlisted(self, asked_at: float) -> Iterator[JobState]:
        """Yield jobs that run, were recorded before the round, and were on none of its pages."""
        for job in self._jobs:
            is_recorded = job.run is not None and 0 < job.recorded_at < asked_at
            if is_recorded and job.spec.id not in self._listed:
                yield job
