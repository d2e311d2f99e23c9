"""Messages with which a task asks to be tried again, in the form of notes for the next run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from girder_dask.celery import message_body
from girder_dask.celery.moments import timestamp_of
from girder_dask.errors import ArgumentError
from girder_dask.protocol.celery_message import (
    CHORD_POLL,
    LOCAL_QUEUE,
    MAX_PRIORITY,
    CeleryMessage,
    queue_resources,
)
from girder_dask.protocol.messages import MAX_MOMENT_S, MAX_NOTE_BYTES
from girder_dask.tasks.running_job import RetryRequested

__all__ = ["continued", "request"]

# What a retry changes of a message.
_HEADERS = ("retries", "eta", "expires", "timelimit")
_PROPERTIES = ("priority", "delivery_info")

# The limits of a retry of a call whose sender may not run code.
_MAX_TIMEOUT_S = 30 * 24 * 3600.0
_MAX_QUEUE_CHARS = 90

# Celery polls a chord each second. Each poll is an attempt in the document of its job, so the
# interval grows with the time that has passed.
_POLL_GROWTH = 1.05
_MAX_POLL_INTERVAL_S = 60.0
_MAX_GROWING_POLLS = 1000


class _Note(Struct, omit_defaults=True):
    """What a run leaves for the next one."""

    retries: Annotated[int, Meta(ge=0)] = 0
    headers: Mapping[str, Any] = {}
    queue: str | None = None
    properties: Mapping[str, Any] = {}
    body: str | None = None
    body_encoding: str | None = None


def request(
    message: CeleryMessage,
    again: CeleryMessage,
    *,
    first: CeleryMessage | None = None,
    trusted: bool = True,
) -> RetryRequested:
    """Return the request to run a message again, changed as ``again`` says.

    A time before the year 1970 or after the year 9999 is brought into these limits. The note holds
    the arguments only if the task has changed them.

    Parameters
    ----------
    first
        The message as its job has it, if a run before has changed it.
    trusted
        Whether whoever sent the message may run code. Jobs of others get neither a time limit of
        more than 30 days nor a priority above 0, or above their own. No retry takes a job to the
        queue ``local``.

    Raises
    ------
    ArgumentError
        If the changed arguments are too large, or the queue is none that the job may have.
    """
    is_changed = message_body.message_text(again) != message_body.message_text(message)
    note = _Note(
        retries=int(again.headers.get("retries") or 0),
        headers={name: again.headers.get(name) for name in _HEADERS[1:]},
        queue=again.queue,
        properties={name: again.properties.get(name) for name in _PROPERTIES},
        body=again.body if is_changed else None,
        body_encoding=again.body_encoding,
    )
    data = msgspec.json.encode(note)
    if len(data) > MAX_NOTE_BYTES:
        raise ArgumentError(
            f"{message.task} asks to be tried again with other arguments, which take "
            f"{len(data):,} bytes, more than the {MAX_NOTE_BYTES:,} that are stored for that. Pass "
            "less, or start another task.",
            task=message.task_name,
        )
    first = first or message
    return RetryRequested(
        _not_before(message, again),
        data,
        timeout=_timeout(first, again, trusted=trusted),
        priority=_priority(first, again, trusted=trusted),
        resources=_resources(first, again),
    )


def _timeout(first: CeleryMessage, again: CeleryMessage, *, trusted: bool) -> float | None:
    """Return the time limit of the next runs, 0 for that of the task, None if it stays."""
    before, after = (
        float((each.headers.get("timelimit") or [0])[0] or 0) for each in (first, again)
    )
    if after == before:
        return None
    return max(after, 0.0) if trusted else min(max(after, 0.0), _MAX_TIMEOUT_S)


def _priority(first: CeleryMessage, again: CeleryMessage, *, trusted: bool) -> int | None:
    before, after = (int(each.properties.get("priority") or 0) for each in (first, again))
    if after == before:
        return None
    after = max(-MAX_PRIORITY, min(after, MAX_PRIORITY))
    return after if trusted else min(after, max(before, 0))


def _resources(first: CeleryMessage, again: CeleryMessage) -> Mapping[str, float] | None:
    """Return the resources of the queue of the next runs, None if the queue stays."""
    if again.queue == first.queue:
        return None
    is_name = again.queue.isprintable() and 0 < len(again.queue) <= _MAX_QUEUE_CHARS
    if not is_name or again.queue == LOCAL_QUEUE:
        raise ArgumentError(
            f"{first.task} asks to be tried again in the queue {again.queue!r:.100}. "
            + (
                f"Only the first message of a job takes it to the queue {LOCAL_QUEUE}."
                if is_name
                else f"The name of a queue is a line of at most {_MAX_QUEUE_CHARS} characters."
            ),
            task=first.task_name,
        )
    return queue_resources(again.queue)


def _not_before(message: CeleryMessage, again: CeleryMessage) -> float:
    """Return the earliest start of the next run, in seconds since the epoch."""
    now = time.time()
    moment = timestamp_of(again.headers.get("eta"))
    if moment is None:
        return now
    interval_s = moment - now
    if message.task == CHORD_POLL and 0 < interval_s < _MAX_POLL_INTERVAL_S:
        retries = min(int(again.headers.get("retries") or 0), _MAX_GROWING_POLLS)
        moment = now + min(interval_s * _POLL_GROWTH**retries, _MAX_POLL_INTERVAL_S)
    return min(max(moment, 0.0), float(MAX_MOMENT_S))


def continued(message: CeleryMessage, note: bytes) -> CeleryMessage:
    """Return a message as the last run has left it."""
    left = msgspec.json.decode(note, type=_Note)
    properties = {name: each for name, each in left.properties.items() if each is not None}
    continued = replace(
        message,
        queue=left.queue or message.queue,
        headers={**message.headers, **left.headers, "retries": left.retries},
        properties={**message.properties, **properties},
    )
    if left.body is None:
        return continued
    return replace(continued, body=left.body, body_encoding=left.body_encoding)
