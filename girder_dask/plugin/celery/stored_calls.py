"""The calls that follow a running message, as Girder has stored them.

A job of an owner who may not run code sends data alone. What its own message holds was checked
when Girder recorded it, so the job may send that: the next call of a chain, a callback, the body of
a chord, whatever task they name and whatever objects are among their arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bson import ObjectId
from girder_worker.task import Task

from girder_dask.celery import message_body
from girder_dask.errors import ArgumentError
from girder_dask.plugin.store import job_records
from girder_dask.protocol.celery_message import CeleryMessage
from girder_dask.protocol.payload import open_call

__all__ = ["StoredCalls", "load"]

# The most characters of all calls in a message.
_MAX_TEXT = 64 * 1024**2

_OPTIONS = frozenset({*Task.reserved_headers, *Task.reserved_options})


@dataclass(frozen=True)
class StoredCalls:
    """The calls in the message of a job.

    Attributes
    ----------
    calls
        The digests of their tasks and arguments.
    objects
        The objects of jsonpickle in the message, as text.
    trusted
        Whether the message may run code of its author when it is opened.
    """

    calls: frozenset[bytes] = frozenset()
    objects: frozenset[str] = field(default=frozenset(), repr=False)
    trusted: bool = False

    def has(self, signature: Mapping[str, Any]) -> bool:
        """Return True if a call is one of these, with the same arguments."""
        return _digest(_text(signature)) in self.calls

    def continues(self, message: CeleryMessage) -> bool:
        """Return True if a message makes one of these calls, perhaps with one argument before.

        That is the result of the job, or are those of the members of a chord.
        """
        found = message_body.arguments(message)
        if found is None:
            return False
        args, kwargs = found
        tails = (args, args[1:]) if args else (args,)
        return any(
            self.has({"task": message.task, "args": tail, "kwargs": kwargs}) for tail in tails
        )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _text(signature: Mapping[str, Any]) -> str:
    args, kwargs = signature.get("args") or [], signature.get("kwargs") or {}
    return message_body.as_text([signature.get("task"), args, kwargs])


def _texts(signature: Mapping[str, Any]) -> Iterator[str]:
    """Yield a call as it is stored, and as girder_worker sends it, without the options of its job.

    They may be among the keyword arguments, from which girder_worker takes them.
    """
    yield _text(signature)
    kwargs = signature.get("kwargs")
    if isinstance(kwargs, Mapping) and not kwargs.keys().isdisjoint(_OPTIONS):
        rest = {name: value for name, value in kwargs.items() if name not in _OPTIONS}
        yield _text({**signature, "kwargs": rest})


def load(job_id: ObjectId) -> StoredCalls:
    """Return the calls in the stored message of a job, none if it has no message of Celery."""
    spec = job_records.load_spec(job_id)
    message = None if spec is None else _message(spec.payload)
    if spec is None or message is None:
        return StoredCalls()
    body = message_body.load(message)
    return StoredCalls(
        frozenset(_digests(body)),
        frozenset(
            message_body.as_text(each)
            for part in (body, message.headers)
            for each in message_body.objects(part)
        ),
        spec.trusted,
    )


def _digests(body: Any) -> Iterator[bytes]:
    """Yield the digests of the calls in a body, until as much text was read as the bound allows.

    Each call holds those that are nested in it, so all of them can be far longer than the body.
    """
    left = _MAX_TEXT
    for each in message_body.signatures(body):
        for text in _texts(each):
            left -= len(text)
            if left < 0:
                return
            yield _digest(text)


def _message(payload: bytes) -> CeleryMessage | None:
    try:
        return open_call(payload, unpickle=False).message
    except (ValueError, ArgumentError):
        return None
