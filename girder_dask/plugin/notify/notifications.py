"""What users' browsers are told of their jobs, exactly as ``girder_jobs`` tells it.

Each notice of ``girder_jobs`` is a request to Redis, which its sender waits for. Here those of
a batch go in one, nobody waits, and none is made that nobody listens to
(:mod:`girder_dask.plugin.notify.redis_publisher`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from girder import events
from girder.models.user import User
from girder.notification import ProgressState
from girder_jobs.constants import JobStatus as GirderJobStatus
from girder_jobs.models.job import Job

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.plugin.girder_events import EVENT_HANDLER, is_bound
from girder_dask.plugin.notify.redis_publisher import LazyMessages, RedisPublisher

__all__ = ["Change", "NotificationBatch", "load_owners", "publish"]

logger = logging.getLogger(__name__)

#: What a notice takes while it waits, besides text that was printed and arguments.
_NOTIFICATION_BYTES = 8000

_publisher = RedisPublisher()


class Change(Protocol):
    """What was written to a job: a :class:`~girder_dask.plugin.store.job_change.JobChange`, for
    example.

    ``steps`` are the states that it went through, each with how many timestamps the job had
    then. ``restated`` says that there is other news of the state that it is in.
    """

    job: dict[str, Any]
    steps: list[tuple[int, int]]
    progressed: bool
    restated: bool

    @property
    def text(self) -> Sequence[str]:
        """What was added to the log."""

    @property
    def log_sizes(self) -> tuple[int, int] | None:
        """From which size of the log to which it goes; None if the sizes do not tell."""

    @property
    def changed(self) -> bool:
        """Whether anything was written at all."""


def publish(changes: Iterable[Change]) -> None:
    """Tell users' browsers and handlers of events of what was written to jobs."""
    changes = [change for change in changes if change.changed]
    batch = NotificationBatch()
    for change in changes:
        try:
            batch.add_changed(change)
        except (TypeError, ValueError, KeyError, AttributeError):
            # What was written is written, and the others are to be told.
            logger.exception("Nobody is told of job %s, which is malformed", change.job.get("_id"))
    batch.send()
    _tell_handlers(changes)


def _tell_handlers(changes: Sequence[Change]) -> None:
    if not is_bound("jobs.job.update.after", besides=EVENT_HANDLER):
        return
    for change in changes:
        try:
            events.trigger("jobs.job.update.after", {"job": change.job})
        except Exception:
            # The job is updated; a handler of somebody else cannot undo that.
            logger.exception("A handler of jobs.job.update.after failed: %s", change.job["_id"])


def load_owners(user_ids: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    """Return the owners of jobs by their ids, all found at once. None is nobody's id."""
    ids = set(user_ids) - {None}
    if not ids:
        return {}
    return {user["_id"]: user for user in User().collection.find({"_id": {"$in": list(ids)}})}


class NotificationBatch:
    """Notices that are collected and then sent together.

    What they are made of is kept as it is now. They are made later, if somebody listens.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, Callable[[dict[str, Any]], Iterator[dict[str, Any]]]]] = []
        self._size = 0

    def add_created(self, job: Mapping[str, Any]) -> None:
        """Tell of a new job. ``kwargs`` of the document are serialised."""
        shown = _copied(job)
        size = len(job["kwargs"]) if isinstance(job["kwargs"], str) else 0
        self._add(job, lambda _: iter([{"type": "job_created", "data": shown}]), size)

    def add_changed(self, change: Change) -> None:
        """Tell of what was written to a job."""
        job, text, sizes = _copied(change.job), "".join(change.text), change.log_sizes
        for name in ("args", "kwargs"):  # they can be large, and no page needs them
            job.pop(name, None)
        progressed, steps, now = change.progressed, list(change.steps), time.time()
        if change.restated and not steps:
            steps = [(job["status"], len(job["timestamps"]))]

        def make(user: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if text:
                yield _log(job, text, sizes)
            if progressed:
                yield _progress(job, now)
            yield from _states(job, user, steps)

        self._add(job, make, len(text))

    def _add(
        self,
        job: Mapping[str, Any],
        make: Callable[[dict[str, Any]], Iterator[dict[str, Any]]],
        size: int = 0,
    ) -> None:
        if job.get("userId"):
            self._waiting.append((job["userId"], make))
            self._size += _NOTIFICATION_BYTES + size

    def send(self) -> None:
        """Send what was collected. Returns at once, and never raises."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return

        def make(heard: Collection[str]) -> Iterator[tuple[str, str]]:
            told = [notices for notices in waiting if _channel(notices[0]) in heard]
            users = load_owners(user_id for user_id, _ in told)
            for user_id, make_one in told:
                if user_id not in users:
                    continue
                try:
                    texts = [json.dumps(one, default=str) for one in make_one(users[user_id])]
                except Exception:
                    # Something in a document is not as Girder's models have it.
                    logger.exception("A user is not told of a job")
                    continue
                for text in texts:
                    yield _channel(user_id), text

        channels = frozenset(_channel(user_id) for user_id, _ in waiting)
        _publisher.post(LazyMessages(channels, self._size, make))
        self._size = 0


def _copied(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job as it is now. What is deeper in it is replaced, not changed."""
    dask = dict(job.get("dask") or {})
    if "group" in dask:
        dask["group"] = dict(dask["group"])
    return {**job, "dask": dask}


def _channel(user_id: Any) -> str:
    return f"user_{user_id}"


def _states(
    job: dict[str, Any], user: dict[str, Any], steps: Iterable[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """Tell of the states that a job has gone through.

    ``steps`` are pairs of a state and how many timestamps the job had in it.
    """
    filtered = Job().filter({k: v for k, v in job.items() if k != "log"}, user)
    for status, length in steps:
        data = {**filtered, "status": status, "timestamps": job["timestamps"][:length]}
        yield {"type": "job_status", "data": data}


def _log(job: Mapping[str, Any], text: str, sizes: tuple[int, int] | None) -> dict[str, Any]:
    """Tell of text that was added to a log, and from which size of it to which it goes.

    So a page knows whether what it has fetched holds the text.
    """
    data: dict[str, Any] = {"_id": job["_id"], "overwrite": False, "text": text}
    return {"type": "job_log", "data": data if sizes is None else {**data, "sizes": sizes}}


def _progress(job: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Tell how far a job is."""
    progress = job["progress"]
    data = {
        "title": job["title"],
        "total": progress["total"],
        "current": progress["current"],
        "state": _progress_state(job["status"]),
        "message": progress["message"],
        "resource": job,
        "resourceName": "job",
    }
    return {
        "type": "progress",
        "data": data,
        "estimateTime": False,
        "startTime": now,
        "_id": str(job["_id"]),
    }


def _progress_state(status: int) -> str:
    """Return the state that a browser shows a progress bar in.

    Girder's own jobs know no states besides theirs, and show the others as errors.
    """
    if status not in FINAL and status >= JobStatus.FETCHING_INPUT:
        return str(ProgressState.ACTIVE)
    return str(GirderJobStatus.toNotificationStatus(status))
