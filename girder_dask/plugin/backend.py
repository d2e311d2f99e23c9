"""The backend inside Girder, which records jobs in the database and sends them to the scheduler."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cherrypy
from bson import ObjectId
from bson.errors import InvalidId
from girder.api.rest import getCurrentUser
from girder.constants import AccessType
from girder.exceptions import AccessException, GirderException
from girder.models.user import User
from girder_jobs.models.job import Job
from msgspec.structs import replace
from pymongo.errors import PyMongoError

from girder_dask.errors import GirderError
from girder_dask.jobs import JobStatus
from girder_dask.plugin import memory_trimming, settings, site
from girder_dask.plugin.dask_client import LazyDaskClient
from girder_dask.plugin.scheduler_addresses import SchedulerAddresses
from girder_dask.plugin.store import (
    cancellation,
    claims,
    existing_jobs,
    job_records,
    recording,
    results,
    tokens,
)
from girder_dask.plugin.store.access.authority import IN_GIRDER, Authority
from girder_dask.plugin.store.access.requester import may_access
from girder_dask.plugin.store.database import database_errors
from girder_dask.plugin.store.logs import chunks
from girder_dask.plugin.store.maps import parents
from girder_dask.plugin.store.maps.recording import MapPiece, extend_map, record_map
from girder_dask.plugin.store.unreachable import UnreachableReporter
from girder_dask.plugin.store.validation import MalformedDocument, is_map_parent
from girder_dask.protocol.messages import JobSpec, MapParent, StoredResult, Submission

if TYPE_CHECKING:
    from distributed import Client

    from girder_dask.client.backend import CeleryMessages
    from girder_dask.plugin.scheduler_link import SchedulerLink

__all__ = ["GirderBackend"]

logger = logging.getLogger(__name__)

_NO_JOB_CREATED = "No job was created, as Girder's database does not answer"

# The number of jobs in a request from which free memory is then returned to the system.
_TRIM_MIN_JOBS = 1000
# Timeout of a check whether the scheduler answers.
_CHECK_TIMEOUT_S = 8.0
# A little longer than the scheduler takes to find out which jobs have started.
_CANCEL_TIMEOUT_S = 2.0


class GirderBackend:
    """A :class:`girder_dask.client.backend.Backend` that uses Girder's own models."""

    #: Code inside Girder may run any code here, so calls of installed functions suffice.
    ships_code = False

    def __init__(self) -> None:
        self._addresses = SchedulerAddresses(settings.scheduler_addresses)
        self._dask_client = LazyDaskClient(self._addresses.current)
        self._link: SchedulerLink | None = None
        #: Records in queued jobs that the scheduler is unreachable.
        self.unreachable = UnreachableReporter()
        self._lock = threading.Lock()
        self._celery_messages: CeleryMessages | None = None

    # -- the interface of Backend ----------------------------------------------------------

    @property
    def celery_messages(self) -> CeleryMessages:
        """The messages of Celery, if this Girder sends girder_worker's tasks to Dask."""
        if self._celery_messages is None:
            raise GirderError(
                "This Girder does not run girder_worker's tasks on Dask. Start it with "
                "GIRDER_WORKER_BROKER=dask:// in its environment."
            )
        return self._celery_messages

    @celery_messages.setter
    def celery_messages(self, messages: CeleryMessages) -> None:
        self._celery_messages = messages

    def submit(
        self,
        submissions: Sequence[Submission],
        group: MapParent | None = None,
        *,
        more: bool = False,
    ) -> list[dict[str, Any]]:
        """Record the calls as jobs, send them to the scheduler, and return the job documents.

        With a group, the first document is that of its parent job. With ``more``, other calls of
        the group follow.
        """
        with database_errors(_NO_JOB_CREATED):
            user = _request_user()
        return self.submit_for(user, None, submissions, group, more=more)

    def extend_map(
        self, parent: str, submissions: Sequence[Submission], *, offset: int, is_last: bool
    ) -> list[str]:
        """Record further calls of a map, send their jobs, and return the ids of these."""
        piece = MapPiece(ObjectId(parent), submissions, offset, is_last)
        return [str(job["_id"]) for job in self.extend(piece)]

    def unpickles(self, job: Mapping[str, Any]) -> bool:  # noqa: ARG002 - it is part of Backend
        """Return False: unpickling could run any code inside Girder."""
        return False

    def load_job(self, job_id: str, *, log: bool = False) -> dict[str, Any]:
        """Return a job document if the user of the request may read it."""
        job: dict[str, Any] = self._load(job_id, AccessType.READ, includeLog=log)
        return job

    def load_jobs(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the states of those jobs that the user of the request may read."""
        with database_errors(f"The states of {len(job_ids)} jobs cannot be read"):
            jobs = job_records.load_states(job_ids)
        if not _in_request():
            return jobs
        user = _request_user()
        return [job for job in jobs if may_access(job, user, AccessType.READ)]

    def load_log(self, job_id: str) -> str:
        """Return the whole log of a job if the user of the request may read it."""
        job = self._load(job_id, AccessType.READ)
        with database_errors(f"The log of job {job_id} cannot be read"):
            return b"".join(chunks.load(job["_id"]).read()).decode("utf-8", "replace")

    def load_result(self, job_id: str) -> StoredResult:
        """Return the stored result of a job if the user of the request may read it."""
        job = self._load(job_id, AccessType.READ)
        with database_errors(f"The result of job {job_id} cannot be read"):
            return _with_state(results.load(job["_id"]), job)

    def load_results(self, job_ids: Sequence[str]) -> dict[str, StoredResult]:
        """Return the stored results of those jobs that the user of the request may read."""
        jobs = {job["_id"]: job for job in self.load_jobs(job_ids)}
        with database_errors(f"The results of {len(jobs)} jobs cannot be read"):
            return {
                str(job_id): _with_state(stored, jobs[job_id])
                for job_id, stored in results.load_many(jobs)
            }

    def cancel(self, job_id: str) -> None:
        """Cancel a job if the user of the request may change it."""
        job = self._load(job_id, AccessType.WRITE)
        with database_errors(f"Job {job_id} cannot be canceled"):
            try:
                Job().cancelJob(job)
            except GirderException as e:
                raise GirderError(f"Job {job_id} cannot be canceled: {e}.") from e

    def scheduler_address(self) -> str | None:
        """Return the address of the Dask scheduler that leads, or None if none is set."""
        return self._addresses.current()

    def dask_client(self) -> Client:
        """Return the Dask client of this process, which the first call creates."""
        return self._dask_client.client()

    # -- for the rest of the plugin -------------------------------------------------------

    def submit_for(
        self,
        user: Mapping[str, Any] | None,
        parent: ObjectId | None,
        submissions: Sequence[Submission],
        group: MapParent | None,
        *,
        more: bool = False,
        authority: Authority = IN_GIRDER,
    ) -> list[dict[str, Any]]:
        """Record and send calls as :meth:`submit` does, for a given user and parent job."""
        with database_errors(_NO_JOB_CREATED):
            if group is None:
                recorded = recording.record(
                    submissions, user, parent, authority=authority, tokens_later=True
                )
                jobs = [r.job for r in recorded]
            else:
                job, recorded = record_map(
                    group,
                    submissions,
                    user,
                    parent,
                    authority=authority,
                    tokens_later=True,
                    more=more,
                )
                jobs = [job, *(r.job for r in recorded)]
        self._send_recorded(recorded)
        self._cancel_late([parent, *(job["_id"] for job in jobs[:1] if is_map_parent(job))])
        return jobs

    def extend(
        self, piece: MapPiece, *, authority: Authority = IN_GIRDER
    ) -> Sequence[Mapping[str, Any]]:
        """Record and send further calls of a map. Return the documents of their jobs."""
        with database_errors(_NO_JOB_CREATED):
            recorded = extend_map(piece, authority=authority, tokens_later=True)
        self._send_recorded(recorded)
        self._cancel_late([piece.parent])
        return [r.job for r in recorded]

    def _send_recorded(self, recorded: Sequence[recording.RecordedJob]) -> None:
        self.send([r.spec for r in recorded])
        if len(recorded) >= _TRIM_MIN_JOBS:
            memory_trimming.trim_later()

    def _cancel_late(self, parents: Sequence[ObjectId | None]) -> None:
        """Cancel the children of jobs that were canceled while the children were recorded."""
        try:
            for above in parents:
                if above is not None and job_records.is_stopping(above):
                    self.tell_canceled(cancellation.cancel_children(above, self.ask_scheduler))
        except PyMongoError:
            # The jobs are recorded and will run, so the caller must get them.
            logger.exception("New jobs were not checked for a cancellation during their recording")

    def schedule(self, job: dict[str, Any]) -> None:
        """Queue an INACTIVE job that Girder's model created, and send it to the scheduler."""
        owner = User().load(job["userId"], force=True) if job.get("userId") else None
        self.send([existing_jobs.queue_inactive(job, owner).spec])

    def stop(self, job_id: ObjectId) -> JobStatus | None:
        """Cancel a job and the jobs that it has started. Return its new state."""
        try:
            status = cancellation.cancel(job_id, self.ask_scheduler)
        except MalformedDocument:
            # The job was ended, so its children are canceled.
            children = cancellation.cancel_children(job_id, self.ask_scheduler)
            self.tell_canceled([str(job_id), *children])
            raise
        to_stop = []
        if status is not None and status != JobStatus.SUCCESS:
            to_stop = [str(job_id)]  # also if the job was ended because its document is full
        self.tell_canceled(to_stop + cancellation.cancel_children(job_id, self.ask_scheduler))
        # The parent of a map ends with its jobs.
        return job_records.load_status(job_id)

    def tell_canceled(self, job_ids: Sequence[str]) -> None:
        """Tell the scheduler in one call to stop jobs. Returns at once."""
        if job_ids:
            self._scheduler_link().cancel(list(job_ids))

    def ask_scheduler(self, job_ids: Sequence[str]) -> Collection[str] | None:
        """Make the scheduler cancel jobs; return the ids of those that have started or may have.

        Return None if it does not answer.
        """
        return self._scheduler_link().cancel_now(job_ids, _CANCEL_TIMEOUT_S)

    def connect(self) -> None:
        """Start to connect to the scheduler. Returns at once."""
        self._scheduler_link().connect()

    def scheduler_status(self) -> dict[str, Any]:
        """Return ``address``, ``reachable``, ``error`` and ``since`` of the scheduler."""
        return self._scheduler_link().status()

    def link_facts(self) -> dict[str, int]:
        """Return the facts of the link to the scheduler, as its metrics show them."""
        return self._scheduler_link().facts()

    def scheduler_workers(self, timeout_s: float) -> list[dict[str, Any]]:
        """Return the workers of the scheduler, each with its jobs; none if it does not answer."""
        return self._scheduler_link().workers(timeout_s)

    def check_scheduler(self) -> dict[str, Any]:
        """Connect to the scheduler, and return its status as :meth:`scheduler_status` does."""
        return self._scheduler_link().check(_CHECK_TIMEOUT_S)

    def close(self) -> None:
        """Close the connections to the scheduler."""
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()
        self._dask_client.close()

    def send(self, specs: list[JobSpec]) -> None:
        """Send recorded jobs to the scheduler. Returns at once."""
        if specs:
            self._scheduler_link().submit(specs)

    def _scheduler_link(self) -> SchedulerLink:
        from girder_dask.plugin.scheduler_link import SchedulerLink

        with self._lock:
            if self._link is None:
                self._link = SchedulerLink(
                    self._addresses.current,
                    self.unreachable.set_reason,
                    _hand_over,
                    site.site_id,
                    self._addresses.try_next,
                )
            return self._link

    def _load(self, job_id: str, level: int, **options: Any) -> Any:
        user = _request_user()
        try:
            with database_errors(f"Job {job_id} cannot be read"):
                job = Job().load(
                    ObjectId(job_id), user=user, level=level, force=not _in_request(), **options
                )
        except InvalidId as e:
            raise GirderError(f"{job_id!r} is not the id of a job.", status=400) from e
        except AccessException as e:
            if user is None:
                anonymous = f"This request is not signed in and has no access to job {job_id}."
                raise GirderError(f"{anonymous} Log in first.", status=401) from e
            raise GirderError(
                f"The user {user['login']} has no access to job {job_id}: {e}", status=403
            ) from e
        if job is None:
            raise GirderError(f"There is no job {job_id}.", status=404)
        return job


def _with_state(stored: StoredResult, job: Mapping[str, Any]) -> StoredResult:
    return replace(stored, status=int(job["status"]), parts=parents.load_part_ids(job))


def _hand_over(scheduler: str | None, job_ids: Sequence[str]) -> Collection[str]:
    # Tokens are stored before the jobs are claimed: a claimed job has not ended, so its end deletes
    # the token. Of the other jobs, some may have ended before their tokens were stored.
    tokens.store(tokens.pending.take(job_ids))
    taken = set() if scheduler is None else claims.claim_for_push(scheduler, job_ids)
    tokens.delete_ended([ObjectId(job_id) for job_id in job_ids if job_id not in taken])
    return taken


def _in_request() -> bool:
    return cherrypy.request.app is not None


def _request_user() -> Any:
    return getCurrentUser() if _in_request() else None
