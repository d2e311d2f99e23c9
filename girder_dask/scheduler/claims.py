"""Claims of unfinished jobs from Girder, and questions about dependencies."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from girder_dask import config
from girder_dask.errors import GirderError
from girder_dask.http.scheduler_api import GirderRequests
from girder_dask.protocol.messages import JobSpec
from girder_dask.scheduler.dependencies import DependencyGate
from girder_dask.scheduler.dispatcher import Dispatcher
from girder_dask.scheduler.reconciler import GirderReconciler
from girder_dask.utils.background import Guard, repeat

__all__ = ["JobClaims"]

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
    dependencies
        Knows which dependencies to ask about.
    reconciler
        Compares Girder's list of this scheduler's jobs with the scheduler's own.
    """

    def __init__(
        self,
        girder: GirderRequests,
        dispatcher: Dispatcher,
        dependencies: DependencyGate,
        reconciler: GirderReconciler,
    ) -> None:
        self._girder = girder
        self._dispatcher = dispatcher
        self._dependencies = dependencies
        self._reconciler = reconciler
        self._interval_s = config.seconds("scheduler.pull-interval")
        #: The id of Girder, None until it has answered.
        self.site: str | None = None
        # Any kind of error may occur, for example with a Girder of another version.
        self._claim_guard = self._guard("Asking Girder for unfinished jobs")
        self._lookup_guard = self._guard("Asking Girder for the inputs of jobs")

    def _guard(self, what: str) -> Guard:
        return Guard(
            logger,
            what,
            expected=(GirderError,),
            first_delay_s=config.seconds("scheduler.retry-delay"),
            max_delay_s=self._interval_s,
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
        answer = await self._girder.claim(_MAX_JOBS_PER_REQUEST, page_after, missing)
        self.site = answer.get("site")
        self._dispatcher.cancel(answer["cancel"])
        self._reconciler.on_page(answer.get("held"))
        specs = JobSpec.from_wires(answer["specs"])
        if specs:
            logger.info("Girder had %d unfinished jobs for this scheduler", len(specs))
            self._dispatcher.accept(specs)
        is_complete = not specs and not self._reconciler.missing()
        return self._interval_s if is_complete else 0.0

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
