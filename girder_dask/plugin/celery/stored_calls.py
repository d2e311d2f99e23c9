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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bson import ObjectId
from girder_worker.app import app
from girder_worker.task import Task

from girder_dask.celery import message_body
from girder_dask.celery.following_calls import (
    FollowingCall,
    call_text,
    compared,
    following_calls,
    hooks,
    own_options,
)
from girder_dask.celery.shared_values import as_text, size_of
from girder_dask.errors import ArgumentError
from girder_dask.plugin.store import job_records
from girder_dask.protocol.celery_message import LOCAL_QUEUE, CeleryMessage
from girder_dask.protocol.payload import open_call

__all__ = [
    "MAX_BODY_CHARS",
    "MAX_CALLS",
    "MAX_CONTAINERS",
    "CallRights",
    "StoredCalls",
    "load",
    "names_local_queue",
    "of_message",
]

logger = logging.getLogger(__name__)

#: The number of calls of a message that a job may send. Later ones are unknown.
MAX_CALLS = 50_000
#: The most characters of the body of a message that a job may send, and the most lists and mappings
#: in it.
MAX_BODY_CHARS = 2 * 1024**2
MAX_CONTAINERS = 100_000
# What a list or a mapping counts as characters.
_OF_CONTAINER = MAX_BODY_CHARS // MAX_CONTAINERS
# The most lists and mappings of a message whose calls are read at all, which takes a second.
_MAX_READ_CONTAINERS = 1_000_000
# The number of jobs whose calls a process of Girder keeps, and of bytes of all of them.
_MAX_JOBS = 256
_MAX_KEPT_BYTES = 32 * 1024**2
# The bytes of a digest with what belongs to it in the memory.
_DIGEST_BYTES = 512
# The most characters of the calls of a message, besides its own length. A value that many calls
# share counts in each.
_MAX_SHARED_CHARS = 4 * 1024**2

_SHARE_TOO_MUCH = (
    "The calls after the task %s share so much that only %d of them are stored. A job whose owner "
    "may not run code cannot start the others."
)

_OPTIONS = frozenset({*Task.reserved_headers, *Task.reserved_options})


class CallRights(NamedTuple):
    """What may be done with a stored call.

    Attributes
    ----------
    is_mutable
        Whether it may be sent with one argument before its own, the result of what came before.
    is_local
        Whether it may be sent to the queue ``local``.
    hooks
        The texts of the transforms of its result, which are in the headers of its message.
    options
        The text of what else of its options runs code when it is opened.
    """

    is_mutable: bool
    is_local: bool
    hooks: tuple[str, ...] = ()
    options: str = ""

    def include(self, other: CallRights) -> bool:
        """Return True if these rights are those of another call, or more."""
        return self.is_mutable >= other.is_mutable and self.is_local >= other.is_local

    @property
    def nbytes(self) -> int:
        """The bytes of the texts."""
        return len(self.options) + sum(map(len, self.hooks))


@dataclass(frozen=True)
class StoredCalls:
    """The calls in the message of a job.

    Attributes
    ----------
    calls
        The rights of each, by the digests of their tasks and arguments. Calls that differ in their
        rights alone have one digest.
    longest
        The number of characters of the longest call of each task, as text.
    objects
        The objects of jsonpickle in the message, as text.
    trusted
        Whether the message may run code of its author when it is opened.
    """

    calls: Mapping[bytes, frozenset[CallRights]] = field(default_factory=dict)
    longest: Mapping[str, int] = field(default_factory=dict)
    objects: frozenset[str] = field(default=frozenset(), repr=False)
    trusted: bool = False

    def lacking(self, calls: Iterable[FollowingCall], max_chars: int) -> list[FollowingCall]:
        """Return the calls that are none of these, with the same arguments and no more rights.

        The objects among their options are compared as well.

        Raises
        ------
        ArgumentError
            If more characters than a number would have to be compared.
        """
        found: list[FollowingCall] = []
        options = _OptionsTexts()
        for call in calls:
            size = self._size(call.task, call.args, call.kwargs)
            max_chars -= size
            if max_chars < 0:
                raise ArgumentError(
                    f"The calls of {call.task[:200]} in the message share so much that they cannot "
                    "be compared with those that Girder has stored."
                )
            if not self._has(call, size, options):
                found.append(call)
        return found

    def _has(self, call: FollowingCall, size: int, texts: _OptionsTexts) -> bool:
        asked, rights = CallRights(call.is_mutable, call.is_local), self._rights(*call[:3], size)
        options = texts.of(call) if rights else ""
        return any(each.include(asked) and each.options == options for each in rights)

    def continues(self, message: CeleryMessage, args: Any, kwargs: Any) -> bool:
        """Return True if a message makes one of these calls, in a queue that it may have.

        A call that is not immutable may have one argument before its own. That is the result of
        the job, or are those of the members of a chord. The transforms of its result are its own.
        """
        is_local = message.queue == LOCAL_QUEUE
        sent = _hooks(message_body.hooks(message))

        def allows(given: Any, *, is_mutable: bool) -> bool:
            asked = CallRights(is_mutable, is_local)
            return any(
                each.include(asked) and (not sent or each.hooks == sent)
                for each in self._rights(
                    message.task, given, kwargs, self._size(message.task, given, kwargs)
                )
            )

        return allows(args, is_mutable=False) or (
            isinstance(args, list) and bool(args) and allows(args[1:], is_mutable=True)
        )

    def _size(self, task: str, args: Any, kwargs: Any) -> int:
        """Return the characters to compare, a few more than possible if the call is too long."""
        longest = self.longest.get(task, 0)
        return size_of(compared(task, args, kwargs), longest) if longest else 0

    def _rights(self, task: str, args: Any, kwargs: Any, size: int) -> frozenset[CallRights]:
        if not 0 < size <= self.longest[task]:
            return frozenset()
        text = call_text(task, args, kwargs)
        if message_body.has_reference(text):  # which leads elsewhere in another message
            return frozenset()
        return self.calls.get(_digest(text), frozenset())

    @property
    def nbytes(self) -> int:
        """About the number of bytes that this takes in memory."""
        rights = sum(each.nbytes + _DIGEST_BYTES for all_ in self.calls.values() for each in all_)
        return rights + sum(len(each) + _DIGEST_BYTES for each in self.objects)


def _hooks(given: Any) -> tuple[str, ...]:
    """Return the transforms of a result as texts, none if opening them runs no code."""
    if not isinstance(given, (list, tuple)) or message_body.find_code(given, "") is None:
        return ()
    return tuple(as_text(each) for each in given)


class _OptionsTexts:
    """The objects among the options of calls as texts. Calls may share their options."""

    def __init__(self) -> None:
        # With the options, so that no others have their ids.
        self._texts: dict[int, tuple[Any, str]] = {}

    def of(self, call: FollowingCall) -> str:
        """Return the text of a call, empty if its options are data."""
        known = self._texts.get(id(call.options))
        if known is None:
            options = own_options(call)
            known = call.options, as_text(options) if options else ""
            self._texts[id(call.options)] = known
        return known[1]


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
        self._nbytes = 0

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
            self._nbytes += stored.nbytes
            while len(self._kept) > 1 and (
                len(self._kept) > _MAX_JOBS or self._nbytes > _MAX_KEPT_BYTES
            ):
                _, oldest = self._kept.popitem(last=False)
                self._nbytes -= oldest.nbytes


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
    if message is None:
        return StoredCalls()
    if message_body.count_containers(message) > _MAX_READ_CONTAINERS:
        logger.warning(
            "The message for the task %s has more than %d lists and mappings, so the calls in it "
            "are not stored. A job whose owner may not run code cannot start them.",
            message.task,
            _MAX_READ_CONTAINERS,
        )
        return StoredCalls()
    body = message_body.load(message)
    if body is None:
        return StoredCalls()
    calls: dict[bytes, frozenset[CallRights]] = {}
    longest: dict[str, int] = {}
    left = len(message.body) + _MAX_SHARED_CHARS
    walk_left = (len(message.body) // 2) * _OF_CONTAINER + 2 * _MAX_SHARED_CHARS
    following = list(itertools.islice(following_calls(message.task, body), MAX_CALLS))
    options = _OptionsTexts()
    for call in following:
        size = _size_to_send([call.args, call.kwargs, call.options])
        walk_left -= size
        if size > MAX_BODY_CHARS and walk_left >= 0:
            continue
        rights = _rights_of(call, options)
        for text in _texts(call):
            digest = _digest(text)
            calls[digest] = calls.get(digest, frozenset()) | {rights}
            longest[call.task] = max(longest.get(call.task, 0), len(text))
            left -= len(text)
        left -= rights.nbytes
        if min(left, walk_left) < 0:
            logger.warning(_SHARE_TOO_MUCH, message.task, len(calls))
            break
    objects: list[str] = []
    # Those of a message that is not trusted are of no use, and none are if no call follows.
    parts = [message_body.arguments(message), *(call[1:] for call in following)] if trusted else []
    for text in itertools.chain.from_iterable(
        message_body.objects(part)
        for part in parts
        if calls and _size_to_send(part) <= MAX_BODY_CHARS
    ):
        objects.append(text)
        left -= len(text)
        if left < 0:
            break
    return StoredCalls(calls, longest, frozenset(objects), trusted)


def _size_to_send(part: Any) -> int:
    """Return the size of a part of a message, more than the most if no job can send it."""
    return size_of(part, MAX_BODY_CHARS, of_container=_OF_CONTAINER)


def _rights_of(call: FollowingCall, options: _OptionsTexts) -> CallRights:
    return CallRights(
        call.is_mutable,
        call.is_local or names_local_queue(call.task),
        _hooks(hooks(call)),
        options.of(call),
    )


def _message(payload: bytes) -> CeleryMessage | None:
    try:
        return open_call(payload, unpickle=False).message
    except (ValueError, ArgumentError):
        return None
