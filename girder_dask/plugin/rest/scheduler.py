"""The routes for schedulers and operators, under ``/dask``."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from bson import ObjectId
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource, getCurrentUser, requireAdmin
from girder.constants import TokenScope
from girder.exceptions import AccessException, RestException
from girder.models.api_key import ApiKey
from girder.models.assetstore import Assetstore
from girder.models.token import Token
from pymongo.errors import PyMongoError

from girder_dask import diagnostics
from girder_dask._version import __version__
from girder_dask.celery import is_chosen
from girder_dask.plugin import retention, scheduler_lease, settings, site
from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.notify import redis_publisher
from girder_dask.plugin.rest import body_types, routes
from girder_dask.plugin.rest.body_parser import read_body_as
from girder_dask.plugin.rest.body_types import ClaimBody, PruneBody, SchedulerBody, UpdatesBody
from girder_dask.plugin.store import acknowledgements, claims, job_records, quarantine, updates
from girder_dask.plugin.store.access.authority import may_run_code
from girder_dask.plugin.store.claims import Claim
from girder_dask.plugin.store.unreachable import clear_reason
from girder_dask.protocol.messages import JobUpdate, MalformedMessage
from girder_dask.protocol.names import SCHEDULER_SCOPE
from girder_dask.protocol.wire_json import from_json, to_json
from girder_dask.protocol.wire_version import version_conflict

__all__ = ["DaskResource"]

logger = logging.getLogger(__name__)

#: The tasks that start containers: ours, girder_worker's, and those of slicer_cli_web.
CONTAINER_TASKS = (
    "girder_dask.docker:run",
    "girder_worker.docker.tasks:docker_run",
    "slicer_cli_web.girder_worker_plugin.direct_docker_run:run",
    "slicer_cli_web.image_job:ingest_from_docker",
)

_MAX_CLAIM_JOBS = 10_000
# The most jobs in one page of those that a scheduler should have.
_PAGE_JOBS = 5_000


def _for_schedulers(route: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a route that only the scheduler's credential of an administrator may use.

    It does what ``access.token(required=True)`` and ``requireAdmin`` do, but asks the database for
    the token once and not three times: each update of a job goes through here.
    """

    @functools.wraps(route)
    def checked(*args: Any, **kwargs: Any) -> Any:
        user, token = getCurrentUser(returnToken=True)
        if not token:
            raise AccessException("You must be logged in or have a valid auth token.")
        Token().requireScope(token, SCHEDULER_SCOPE)
        # The key of someone who is no longer an administrator, and an expired token, are refused.
        requireAdmin(user)
        return route(*args, **kwargs)

    marked: Any = checked
    marked.accessLevel, marked.requiredScopes = "token", SCHEDULER_SCOPE
    return checked


TokenScope.describeScope(
    SCHEDULER_SCOPE,
    "Run jobs on Dask",
    "Allows a Dask scheduler to fetch the jobs that it should run, with what they need to "
    "act for their owners, and to update them. It allows nothing else.",
    admin=True,
)


class DaskResource(Resource):
    """The REST resource ``dask``."""

    def __init__(self, backend: GirderBackend) -> None:
        super().__init__()
        self.resourceName = "dask"
        self._backend = backend
        self._site = site.site_id()
        routes.add(self, "GET", ("ping",), self.ping)
        routes.add(self, "GET", ("status",), self.status)
        routes.add(self, "GET", ("credential",), self.credential)
        routes.add(self, "POST", ("job", "updates"), self.update_jobs)
        routes.add(self, "POST", ("job", "claim"), self.claim_jobs)
        routes.add(self, "POST", ("lease", "release"), self.release_lease)
        routes.add(self, "POST", ("prune",), self.prune)

    @access.public
    @autoDescribeRoute(
        Description("Return the version of girder_dask in this Girder, and the id of this Girder.")
    )
    def ping(self) -> dict[str, str]:
        """Return the version and the id, without access to the database."""
        return {"plugin": __version__, "site": self._site}

    @access.user
    @autoDescribeRoute(
        Description(
            "Return the state of the link between this Girder and its Dask scheduler."
        ).notes(
            "`scheduler.reachable` is null until a message was sent to it. `credential.lastUse` "
            "is when a scheduler last signed in with a key that may update Dask jobs. `lease` says "
            "which scheduler leads, and is null if none does. `address`, `error` and `place` "
            "are null for users who may not run code of their own on the cluster."
        )
    )
    def status(self) -> dict[str, Any]:
        """Return the state of the link to the scheduler.

        Anyone who can connect to the scheduler can run code on the cluster. So its address, which
        errors contain too, is shown only to users who may run code there.
        """
        scheduler = self._backend.scheduler_status()
        if not may_run_code(self.getCurrentUser()):
            scheduler |= {"address": None, "error": None}
        keys = list(ApiKey().find({"scope": SCHEDULER_SCOPE, "active": True}, fields=["lastUse"]))
        uses = [key["lastUse"] for key in keys if isinstance(key.get("lastUse"), datetime)]
        return {
            "plugin": __version__,
            "scheduler": scheduler,
            "lease": self._lease_status(),
            "credential": {"keys": len(keys), "lastUse": max(uses, default=None)},
        }

    def _lease_status(self) -> dict[str, Any] | None:
        lease = scheduler_lease.current()
        if lease is None:
            return None
        place = lease.place if may_run_code(self.getCurrentUser()) else None
        return {"place": place, "renewed": lease.renewed}

    @_for_schedulers
    @autoDescribeRoute(
        Description("Check whether the token may update Dask jobs.").notes(
            "For Dask schedulers. The answer has what `girder-dask doctor` compares: versions, "
            "packages of tasks, whether this Girder reaches the scheduler, and the address at "
            "which workers reach this Girder."
        )
    )
    def credential(self) -> dict[str, Any]:
        """Return the diagnostics of this Girder to a scheduler with a valid credential."""
        return {
            **diagnostics.describe_process(None),
            "scheduler": self._backend.check_scheduler(),
            "site": self._site,
            "worker_api_url": settings.default_api_url(),
            "redis_error": redis_publisher.connection_error(),
            **_assetstore(),
            "set_aside": quarantine.summarize(datetime.now(timezone.utc)),
            "container_jobs": job_records.count_unfinished(CONTAINER_TASKS),
        }

    @_for_schedulers
    @autoDescribeRoute(
        Description("Update Dask jobs.")
        .notes(
            "For Dask schedulers. The answer has the ids of jobs that no longer belong to this "
            "scheduler (`stale`), that do not exist (`gone`) and that it must stop (`cancel`), and "
            "the attempts, as `JOB-ATTEMPT`, that are older than the recorded one (`superseded`)."
        )
        .param(**body_types.parameter(UpdatesBody))
        .errorResponse("The body cannot be read.")
        .errorResponse("The body is too large.", 413)
    )
    def update_jobs(self) -> dict[str, list[str]]:
        """Apply a batch of updates."""
        body = read_body_as(UpdatesBody, lenient=True)
        read = [(wire, _read(wire)) for wire in body.updates]
        readable = [update for _, update in read if isinstance(update, JobUpdate)]
        unreadable = [(wire, error) for wire, error in read if isinstance(error, Exception)]
        if unreadable and not readable and not isinstance(unreadable[0][1], MalformedMessage):
            # The versions of the two sides are incompatible.
            raise RestException(f"No update can be read. The first error: {unreadable[0][1]}")
        self._backend.unreachable.record_request(body.scheduler)
        verdicts = updates.apply(body.scheduler, readable)
        verdicts.merge(acknowledgements.acknowledge(body.scheduler, body.received))
        for wire, error in unreadable:
            logger.warning("An update of a job cannot be read and is dropped: %s", error)
            if isinstance(wire, dict) and isinstance(wire.get("id"), str):
                verdicts.stale.append(wire["id"])
        return asdict(verdicts)

    @_for_schedulers
    @autoDescribeRoute(
        Description("Claim Dask jobs for a scheduler.")
        .notes(
            "For Dask schedulers. The answer has what is needed to run the jobs (`specs`) and the "
            "ids of jobs that the scheduler must stop (`cancel`). If `after` is given, the answer "
            "also has a page of jobs that this scheduler should have (`held`), each with its "
            "attempt and sequence, and their `statuses`: the first ones, or those after an id. "
            "`lacking` are the jobs of such a page that the scheduler does not have, `version` is "
            "its version of the messages. `celery` tells whether this Girder runs the tasks of "
            "girder_worker on Dask, so that workers import them. A claim with a `lease` renews it. "
            "While another scheduler has the lease, the answer says where (`lease`), and brings no "
            "jobs."
        )
        .param(**body_types.parameter(ClaimBody))
        .errorResponse("The body cannot be read.")
        .errorResponse("The messages of the two sides have incompatible versions.", 409)
    )
    def claim_jobs(self) -> dict[str, Any]:
        """Assign unfinished jobs to the scheduler that asks."""
        body = read_body_as(ClaimBody)
        scheduler, after = body.scheduler, body.after
        conflict = version_conflict(body.version, "on the scheduler", "in Girder")
        if conflict is not None:
            raise RestException(f"Your jobs wait: {conflict}.", 409)
        lease = None
        if body.lease is not None:
            lease = scheduler_lease.request(
                scheduler, body.lease.place, body.lease.host, body.lease.take_over
            )
            if not lease.leads:
                return {**self._claim_answer(Claim(), None), "lease": lease.to_wire()}
        self._backend.unreachable.record_request(scheduler)
        clear_reason(scheduler)
        lacking = {ObjectId(job): (attempt, sequence) for job, attempt, sequence in body.lacking}
        claim = claims.claim(scheduler, min(body.limit, _MAX_CLAIM_JOBS), lacking)
        page = None
        if after is not None:
            page = acknowledgements.list_held(scheduler, after, _PAGE_JOBS)
        answer = self._claim_answer(claim, page)
        return answer if lease is None else {**answer, "lease": lease.to_wire()}

    def _claim_answer(self, claim: Claim, page: Sequence[Any] | None) -> dict[str, Any]:
        return {
            "site": self._site,
            "celery": is_chosen(),
            "specs": [to_json(spec.to_wire()) for spec in claim.specs],
            "cancel": claim.cancel,
            "held": None if page is None else [held[:3] for held in page],
            "statuses": [status for *_, status in page or ()],
        }

    @_for_schedulers
    @autoDescribeRoute(
        Description("End the lease of a scheduler that stops.")
        .notes("For Dask schedulers. Another one that stands by leads at once.")
        .param(**body_types.parameter(SchedulerBody))
        .errorResponse("The body cannot be read.")
    )
    def release_lease(self) -> dict[str, Any]:
        """End the lease of the scheduler that asks, if it has it."""
        scheduler_lease.release(read_body_as(SchedulerBody).scheduler)
        return {}

    @access.admin
    @autoDescribeRoute(
        Description("Delete what a rule of retention allows, in one small step.")
        .notes(
            "For `girder-dask prune`. One step examines some hundred jobs. The answer has how many "
            "were `deleted` or had something deleted, and `after`, which the next step takes; it "
            "is null when all jobs were examined. The rule is as in the setting `dask.retention`."
        )
        .param(**body_types.parameter(PruneBody))
        .errorResponse("The body cannot be read.")
    )
    def prune(self) -> dict[str, Any]:
        """Delete old jobs, logs, artifacts or results."""
        body = read_body_as(PruneBody)
        after = None if body.after is None else ObjectId(body.after)
        now = datetime.now(timezone.utc)
        step = retention.delete_step(body.rule, after, now, is_dry=body.dry_run)
        return {"deleted": step.deleted, "after": None if step.after is None else str(step.after)}


def _assetstore() -> dict[str, Any]:
    """Return whether outputs of jobs can be stored, and the space that is left for them."""
    current = Assetstore().findOne({"current": True})
    root = None if current is None else current.get("root")
    return {
        "has_assetstore": current is not None,
        "disks": [
            *([] if not isinstance(root, str) else diagnostics.disk_space(root)),
            *_database_disk(),
        ],
    }


def _database_disk() -> list[dict[str, Any]]:
    """Return the space on the disk of MongoDB, or nothing if it does not tell."""
    try:
        found = Assetstore().collection.database.command("dbStats")
    except PyMongoError:
        return []
    used, total = found.get("fsUsedSize"), found.get("fsTotalSize")
    if not isinstance(used, int | float) or not isinstance(total, int | float):
        return []
    return [{"path": "the disk of the database", "free": int(total - used), "total": int(total)}]


def _read(wire: Any) -> JobUpdate | Exception:
    try:
        update: JobUpdate = JobUpdate.from_wire(from_json(wire))
    except (ValueError, TypeError, AttributeError) as e:
        return e
    return update
