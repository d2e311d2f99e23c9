"""Notifications to users' browsers about their jobs, in the format of ``girder_jobs``.

Each notification of ``girder_jobs`` is a blocking request to Redis. Here, the notifications of a
batch are one request, sent in the background, and none is built without a subscriber
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

__all__ = ["Change", "NotificationBatch", "load_owners", "publish", "publisher_facts"]

logger = logging.getLogger(__name__)

#: The approximate size of a waiting notification without log text and arguments.
_NOTIFICATION_BYTES = 8000

_publisher = RedisPublisher()


class Change(Protocol):
    """A change that was written to a job, such as a
    :class:`~girder_dask.plugin.store.job_change.JobChange`.

    ``steps`` are pairs of a state that the job went through and the number of timestamps that it
    had then. ``reason_changed`` is true if the reason why the job is pending has changed.
    """

    job: dict[str, Any]
    steps: list[tuple[int, int]]
    progressed: bool
    reason_changed: bool

    @property
    def text(self) -> Sequence[str]:
        """The text that was added to the log."""

    @property
    def log_sizes(self) -> tuple[int, int] | None:
        """The sizes of the log before and after, None if they are not known."""

    @property
    def changed(self) -> bool:
        """Whether anything was written."""


def publish(changes: Iterable[Change]) -> None:
    """Notify users' browsers and event handlers of changes that were written to jobs."""
    changes = [change for change in changes if change.changed]
    batch = NotificationBatch()
    for change in changes:
        try:
            batch.add_changed(change)
        except (TypeError, ValueError, KeyError, AttributeError):
            # The change is written, and the other jobs need their notifications.
            logger.exception("Malformed job %s: users are not notified", change.job.get("_id"))
    batch.send()
    _trigger_handlers(changes)


def _trigger_handlers(changes: Sequence[Change]) -> None:
    if not is_bound("jobs.job.update.after", besides=EVENT_HANDLER):
        return
    for change in changes:
        try:
            events.trigger("jobs.job.update.after", {"job": change.job})
        except Exception:
            # The job is updated; a handler of another plugin cannot undo that.
            logger.exception("A handler of jobs.job.update.after failed: %s", change.job["_id"])


def load_owners(user_ids: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    """Return users by their ids, with one query. None among the ids is ignored."""
    ids = set(user_ids) - {None}
    if not ids:
        return {}
    return {user["_id"]: user for user in User().collection.find({"_id": {"$in": list(ids)}})}


class NotificationBatch:
    """Notifications that are collected and then sent together.

    Jobs are copied when they are added. The notifications are built later, if a browser has
    subscribed to them.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, Callable[[dict[str, Any]], Iterator[dict[str, Any]]]]] = []
        self._size = 0

    def add_created(self, job: Mapping[str, Any]) -> None:
        """Add a new job. ``kwargs`` of its document are serialised."""
        shown = _copied(job)
        size = len(job["kwargs"]) if isinstance(job["kwargs"], str) else 0
        self._add(job, lambda _: iter([{"type": "job_created", "data": shown}]), size)

    def add_changed(self, change: Change) -> None:
        """Add a change that was written to a job."""
        job, text, sizes = _copied(change.job), "".join(change.text), change.log_sizes
        for name in ("args", "kwargs"):  # they can be large, and no page needs them
            job.pop(name, None)
        progressed, steps, now = change.progressed, list(change.steps), time.time()
        if change.reason_changed and not steps:
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
        """Send the collected notifications. Returns at once and never raises."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return

        def make(subscribed: Collection[str]) -> Iterator[tuple[str, str]]:
            wanted = [each for each in waiting if _channel(each[0]) in subscribed]
            users = load_owners(user_id for user_id, _ in wanted)
            for user_id, make_one in wanted:
                if user_id not in users:
                    continue
                try:
                    texts = [json.dumps(one, default=str) for one in make_one(users[user_id])]
                except Exception:
                    # The document is not as Girder's models expect it.
                    logger.exception("A user is not notified of a job")
                    continue
                for text in texts:
                    yield _channel(user_id), text

        channels = frozenset(_channel(user_id) for user_id, _ in waiting)
        _publisher.post(LazyMessages(channels, self._size, make))
        self._size = 0


def _copied(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a job. Nested values are shared, since they are replaced, never changed."""
    dask = dict(job.get("dask") or {})
    if "group" in dask:
        dask["group"] = dict(dask["group"])
    return {**job, "dask": dask}


def _channel(user_id: Any) -> str:
    return f"user_{user_id}"


def _states(
    job: dict[str, Any], user: dict[str, Any], steps: Iterable[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """Yield a notification of each state that a job went through.

    ``steps`` are pairs of a state and the number of timestamps that the job had in it.
    """
    filtered = Job().filter({k: v for k, v in job.items() if k != "log"}, user)
    for status, length in steps:
        data = {**filtered, "status": status, "timestamps": job["timestamps"][:length]}
        yield {"type": "job_status", "data": data}


def _log(job: Mapping[str, Any], text: str, sizes: tuple[int, int] | None) -> dict[str, Any]:
    """Return the notification of text that was added to a log.

    The sizes of the log before and after let a page see whether the log that it has fetched
    contains the text.
    """
    data: dict[str, Any] = {"_id": job["_id"], "overwrite": False, "text": text}
    return {"type": "job_log", "data": data if sizes is None else {**data, "sizes": sizes}}


def _progress(job: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Return the notification of the progress of a job."""
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
    """Return the state in which a browser shows the progress bar.

    ``girder_jobs`` shows states that are not its own as errors.
    """
    if status not in FINAL and status >= JobStatus.FETCHING_INPUT:
        return str(ProgressState.ACTIVE)
    return str(GirderJobStatus.toNotificationStatus(status))


def publisher_facts() -> dict[str, int]:
    """Return ``waiting_bytes``, ``dropped`` batches and ``failures`` of the publisher."""
    return {
        "waiting_bytes": _publisher.waiting_bytes,
        "dropped": _publisher.dropped,
        "failures": _publisher.failures,
    }
