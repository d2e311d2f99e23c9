"""The calls that follow a running message, as Girder has stored them.

A job of an owner who may not run code sends data alone. What its own message holds was checked
when Girder recorded it, so the job may send that: the next call of a chain, a callback, the body of
a chord, whatever task they name and whatever objects are among their arguments.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bson import ObjectId
from girder_worker.app import app
from girder_worker.task import Task

from girder_dask.celery import message_body
from girder_dask.celery.following_calls import FollowingCall, call_text, following_calls
from girder_dask.errors import ArgumentError
from girder_dask.plugin.store import job_records
from girder_dask.protocol.celery_message import LOCAL_QUEUE, CeleryMessage
from girder_dask.protocol.payload import open_call

__all__ = ["MAX_CALLS", "CallRights", "StoredCalls", "load", "names_local_queue", "of_message"]

logger = logging.getLogger(__name__)

#: The number of calls of a message that a job may send. Later ones are unknown.
MAX_CALLS = 50_000
# The number of jobs whose calls a process of Girder keeps, and of calls in all of them.
_MAX_JOBS = 256
_MAX_KEPT_CALLS = 100_000

# A reference of jsonpickle to another part of its message.
_REFERENCE = '"py/id"'
_OPTIONS = frozenset({*Task.reserved_headers, *Task.reserved_options})


class CallRights(NamedTuple):
    """What may be done with a stored call.

    ``is_mutable`` if it may be sent with one argument before its own, the result of what came
    before; ``is_local`` if it may be sent to the queue ``local``.
    """

    is_mutable: bool
    is_local: bool

    def include(self, other: CallRights) -> bool:
        """Return True if these rights are those of another call, or more."""
        return self.is_mutable >= other.is_mutable and self.is_local >= other.is_local


@dataclass(frozen=True)
class StoredCalls:
    """The calls in the message of a job.

    Attributes
    ----------
    calls
        The rights of each, by the digests of their tasks and arguments. Calls that differ in their
        rights alone have one digest.
    objects
        The objects of jsonpickle in the message, as text.
    trusted
        Whether the message may run code of its author when it is opened.
    """

    calls: Mapping[bytes, frozenset[CallRights]] = field(default_factory=dict)
    objects: frozenset[str] = field(default=frozenset(), repr=False)
    trusted: bool = False

    def has(self, call: FollowingCall) -> bool:
        """Return True if a call is one of these, with the same arguments and no more rights."""
        return self._allow(
            call.task, call.args, call.kwargs, CallRights(call.is_mutable, call.is_local)
        )

    def continues(self, message: CeleryMessage, args: Any, kwargs: Any) -> bool:
        """Return True if a message makes one of these calls, in a queue that it may have.

        A call that is not immutable may have one argument before its own. That is the result of
        the job, or are those of the members of a chord.
        """
        is_local = message.queue == LOCAL_QUEUE
        return self._allow(message.task, args, kwargs, CallRights(False, is_local)) or (
            isinstance(args, list)
            and bool(args)
            and self._allow(message.task, args[1:], kwargs, CallRights(True, is_local))
        )

    def _allow(self, task: str, args: Any, kwargs: Any, rights: CallRights) -> bool:
        if not self.calls:
            return False
        text = call_text(task, args, kwargs)
        if _REFERENCE in text:  # which leads elsewhere in another message
            return False
        stored = self.calls.get(_digest(text), ())
        return any(each.include(rights) for each in stored)


def names_local_queue(task: str) -> bool:
    """Return True if a task, as its package says in Girder, has the queue ``local``."""
    module = task.rpartition(".")[0]
    if task not in app.tasks and module in app.loader.default_modules:
        _import(module)
    return getattr(app.tasks.get(task), "queue", None) == LOCAL_QUEUE


@functools.cache
def _import(module: str) -> None:
    """Import the module of a package that extends girder_worker, which registers its tasks."""
    try:
        importlib.import_module(module)
    except Exception:
        logger.warning("The tasks in %s cannot be imported", module, exc_info=True)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _texts(call: FollowingCall) -> Iterator[str]:
    """Yield a call as it is stored, and as girder_worker sends it, without the options of its job.

    They may be among the keyword arguments, from which girder_worker takes them.
    """
    yield call_text(call.task, call.args, call.kwargs)
    kwargs = call.kwargs
    if isinstance(kwargs, Mapping) and not kwargs.keys().isdisjoint(_OPTIONS):
        rest = {name: value for name, value in kwargs.items() if name not in _OPTIONS}
        yield call_text(call.task, call.args, rest)


class _Cache:
    """The calls of the jobs that have sent messages last. The message of a job never changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[ObjectId, StoredCalls] = OrderedDict()
        self._size = 0

    def get(self, job_id: ObjectId) -> StoredCalls | None:
        with self._lock:
            found = self._kept.get(job_id)
            if found is not None:
                self._kept.move_to_end(job_id)
            return found

    def add(self, job_id: ObjectId, stored: StoredCalls) -> None:
        with self._lock:
            if job_id in self._kept:
                return
            self._kept[job_id] = stored
            self._size += len(stored.calls) + len(stored.objects)
            while len(self._kept) > 1 and (
                len(self._kept) > _MAX_JOBS or self._size > _MAX_KEPT_CALLS
            ):
                _, oldest = self._kept.popitem(last=False)
                self._size -= len(oldest.calls) + len(oldest.objects)


_cache = _Cache()


def load(job_id: ObjectId) -> StoredCalls:
    """Return the calls in the stored message of a job, none if it has no message of Celery."""
    found = _cache.get(job_id)
    if found is not None:
        return found
    spec = job_records.load_spec(job_id)
    if spec is None:
        return StoredCalls()
    stored = of_message(_message(spec.payload), trusted=spec.trusted)
    _cache.add(job_id, stored)
    return stored


def of_message(message: CeleryMessage | None, *, trusted: bool) -> StoredCalls:
    """Return the calls that follow a message, in time that grows with its length alone."""
    body = None if message is None else message_body.load(message)
    if message is None or body is None:
        return StoredCalls()
    calls: dict[bytes, frozenset[CallRights]] = {}
    for call in itertools.islice(following_calls(message.task, body), MAX_CALLS):
        rights = CallRights(call.is_mutable, call.is_local or names_local_queue(call.task))
        for text in _texts(call):
            digest = _digest(text)
            calls[digest] = calls.get(digest, frozenset()) | {rights}
    # Those of a message that is not trusted are of no use.
    parts = (body, message.headers) if trusted else ()
    objects = (message_body.as_text(each) for part in parts for each in message_body.objects(part))
    return StoredCalls(calls, frozenset(objects), trusted)


def _message(payload: bytes) -> CeleryMessage | None:
    try:
        return open_call(payload, unpickle=False).message
    except (ValueError, ArgumentError):
        return None
