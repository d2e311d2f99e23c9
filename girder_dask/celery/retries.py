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
from girder_dask.protocol.celery_message import CHORD_POLL, CeleryMessage
from girder_dask.protocol.messages import MAX_MOMENT_S, MAX_NOTE_BYTES
from girder_dask.tasks.running_job import RetryRequested

__all__ = ["continued", "request"]

# What a retry changes of a message. Its queue is that of the job.
_HEADERS = ("retries", "eta", "expires", "timelimit")

# Celery polls a chord each second. Each poll is an attempt in the document of its job, so the
# interval grows with the time that has passed.
_POLL_GROWTH = 1.05
_MAX_POLL_INTERVAL_S = 60.0
_MAX_GROWING_POLLS = 1000


class _Note(Struct, omit_defaults=True):
    """What a run leaves for the next one."""

    retries: Annotated[int, Meta(ge=0)] = 0
    headers: Mapping[str, Any] = {}
    body: str | None = None
    body_encoding: str | None = None


def request(message: CeleryMessage, again: CeleryMessage) -> RetryRequested:
    """Return the request to run a message again, changed as ``again`` says.

    A time before the year 1970 or after the year 9999 is brought into these limits. The note holds
    the arguments only if the task has changed them.

    Raises
    ------
    ArgumentError
        If the changed arguments are too large.
    """
    is_changed = message_body.arguments(again) != message_body.arguments(message)
    note = _Note(
        retries=int(again.headers.get("retries") or 0),
        headers={name: again.headers.get(name) for name in _HEADERS[1:]},
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
    return RetryRequested(_not_before(message, again), data)


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
    headers = {**message.headers, **left.headers, "retries": left.retries}
    if left.body is None:
        return replace(message, headers=headers)
    return replace(message, headers=headers, body=left.body, body_encoding=left.body_encoding)
