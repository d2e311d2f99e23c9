"""The messages between processes: submissions, job specs, events and updates.

Messages are frozen and carry a version. ``to_wire`` returns plain types that msgpack
(Dask's comms) can send; :func:`to_json` and :func:`from_json` wrap the bytes among them
for HTTP. No ``repr`` shows a token or the bytes of a call.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

__all__ = [
    "WIRE_VERSION",
    "JobEvent",
    "JobSpec",
    "JobUpdate",
    "MapParent",
    "StoredResult",
    "Submission",
    "Wire",
    "from_json",
    "to_json",
]

#: The version of the messages. A receiver refuses a version that it does not know.
WIRE_VERSION = 1


@functools.cache
def _defaults(cls: type) -> dict[str, Any]:
    return {f.name: f.default for f in fields(cls)}


class Wire:
    """Conversion of a flat frozen dataclass to and from plain types."""

    __slots__ = ()

    def to_wire(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as plain types."""
        wire: dict[str, Any] = {"version": WIRE_VERSION}
        for name, default in _defaults(type(self)).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            if value is not None and value != default:
                wire[name] = value
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Any:
        """Build the value again.

        Raises
        ------
        ValueError
            If it was written by a version of girder_dask that this one cannot read.
        """
        version = wire.get("version")
        if version != WIRE_VERSION:
            raise ValueError(
                f"A {cls.__name__} of wire version {version!r} cannot be read here (this is "
                f"version {WIRE_VERSION}). Install the same girder_dask in Girder, on the "
                "scheduler and on the workers; 'girder-dask doctor' shows which differs."
            )
        known = _defaults(cls)  # type: ignore[arg-type]
        return cls(**{k: v for k, v in wire.items() if k in known})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it in a quarter of the time that a dataclass takes: each task has one."""
        names = _defaults(type(self))  # type: ignore[arg-type]
        return type(self), tuple(getattr(self, name) for name in names)


# Characters of the name of a task in a key of Dask.
_MOST_NAME = 100


@dataclass(frozen=True, slots=True)
class JobSpec(Wire):
    """All that is needed to run one attempt of a job.

    Attributes
    ----------
    id
        The id of the job document, 24 hexadecimal digits.
    attempt
        1 for the first run; a new run of the same job is a new attempt.
    task
        The task, as ``package.module:qualified_name``.
    payload
        The pickled call (see :mod:`girder_dask.protocol.payload`). Only a worker opens it.
    token
        A Girder token that belongs to this job alone.
    girder_api_url
        Girder's REST API as code inside Girder gave it for this call. A worker's own
        configuration comes first.
    default_api_url
        Girder's REST API as Girder's settings have it, for who knows no other.
    package
        The distribution that holds the task, with its version, for error messages.
    title
        The title of the job.
    retries
        How many more times a task that raised is tried.
    timeout
        Seconds that the function may run, or None.
    resources
        Dask worker resources that the job needs.
    priority
        Larger runs earlier.
    isolation
        ``'thread'`` or ``'process'``, None for what the worker does by default.
    at_most_once
        Whether a second run must not begin the function, also if the first one was lost.
    dependencies
        The ids of the jobs whose values are among the arguments.
    trusted
        Whether who made the call may run code of their own on the cluster. Others start
        installed tasks alone, with plain arguments, and send to Girder nothing but what is in
        the job's directory. It says nothing of what the token of the job may do.
    """

    id: str
    attempt: int
    task: str
    payload: bytes = field(default=b"", repr=False)
    token: str | None = field(default=None, repr=False)
    girder_api_url: str | None = None
    default_api_url: str | None = None
    package: str | None = None
    title: str = ""
    retries: int = 0
    timeout: float | None = None
    resources: Mapping[str, float] | None = None
    priority: int = 0
    isolation: str | None = None
    at_most_once: bool = False
    dependencies: Sequence[str] | None = None
    trusted: bool = False

    def to_wire(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, and who is trusted, always.

        Not that another version takes the lack of a word for trust.
        """
        return {**Wire.to_wire(self), "trusted": self.trusted}

    @property
    def key(self) -> str:
        """The Dask key of this attempt, fresh for each one."""
        return f"{_name(self.task)}-{self.id}-{self.attempt}"


@functools.lru_cache(maxsize=1024)
def _name(task: str) -> str:
    return task.rpartition(":")[2].replace(".", "_").strip("<>")[:_MOST_NAME] or "job"


@dataclass(frozen=True, slots=True)
class JobEvent(Wire):
    """Something that happened to an attempt of a job.

    ``time`` is in seconds since the epoch, when it happened. ``log`` is text to append,
    ``progress`` has any of ``total``, ``current`` and ``message``, ``result`` the packed return
    value, and ``error`` one line that says why a job ended in ERROR, with ``exception`` packed by
    :func:`girder_dask.protocol.exceptions.pack_exception`, and ``permanent`` if it would end so
    again. ``waits`` is why a job waits in the queue, empty if it waits for its turn alone. An event
    of a run names that execution and the address of its worker.
    """

    id: str
    attempt: int
    time: float
    status: int | None = None
    log: str | None = None
    progress: Mapping[str, Any] | None = None
    result: bytes | None = field(default=None, repr=False)
    error: str | None = None
    exception: bytes | None = field(default=None, repr=False)
    waits: str | None = None
    run: str | None = None
    worker: str | None = None
    permanent: bool | None = None

    @property
    def is_bare(self) -> bool:
        """Whether it says nothing but that the job is there."""
        told = (self.status, self.log, self.progress, self.result)
        why = (self.error, self.exception, self.waits)
        return all(value is None for value in (*told, *why))


@dataclass(frozen=True, slots=True)
class JobUpdate(Wire):
    """All that Girder has not yet heard of an attempt of a job, merged from its events.

    ``sequence`` grows with each update of the same attempt, so that one which is sent
    twice is applied once. ``statuses`` are ``[status, time]`` pairs in order.
    """

    id: str
    attempt: int
    sequence: int
    statuses: list[list[float]] | None = None
    log: str | None = None
    progress: Mapping[str, Any] | None = None
    result: bytes | None = field(default=None, repr=False)
    error: str | None = None
    exception: bytes | None = field(default=None, repr=False)
    waits: str | None = None


@dataclass(frozen=True, slots=True)
class Submission(Wire):
    """A call that is to become a job.

    ``args`` and ``kwargs`` are what people read on the job: plain values, transforms as
    their ``_repr_model_``. ``payload`` is the packed call that a worker opens, with the
    result hooks in it. ``dependencies`` are the ids of the jobs whose values are among the
    arguments. ``user`` is a Girder user document, or None for the user of the request; it
    does not travel.
    """

    task: str
    payload: bytes = field(repr=False)
    package: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    type: str = "dask"
    public: bool = False
    handler: str | None = None
    other_fields: Mapping[str, Any] = field(default_factory=dict)
    user: Any = None
    token: Any = field(default=None, repr=False)
    api_url: str | None = None
    retries: int = 0
    timeout: float | None = None
    resources: Mapping[str, float] | None = None
    priority: int = 0
    isolation: str | None = None
    at_most_once: bool = False
    dependencies: Sequence[str] = ()

    def to_wire(self) -> dict[str, Any]:
        """Return what travels to Girder: all but the user, who is whoever sends it."""
        return Wire.to_wire(replace(self, user=None))


@dataclass(frozen=True, slots=True)
class MapParent(Wire):
    """The parent job of many calls that are submitted together."""

    title: str
    type: str = "dask"
    public: bool = False
    handler: str | None = None
    other_fields: Mapping[str, Any] = field(default_factory=dict)
    user: Any = None

    def to_wire(self) -> dict[str, Any]:
        """Return what travels to Girder: all but the user, who is whoever sends it."""
        return Wire.to_wire(replace(self, user=None))


@dataclass(frozen=True, slots=True)
class StoredResult:
    """What is kept of the end of a job: the packed value, or why there is none.

    ``exception`` is what the task raised, packed by
    :func:`girder_dask.protocol.exceptions.pack_exception`. ``status`` is the state of the job,
    where it came along. ``parts`` are the ids of the jobs under the parent job of a map, in the
    order of the calls, and None for any other job.
    """

    value: bytes | None = field(default=None, repr=False)
    error: str | None = None
    exception: bytes | None = field(default=None, repr=False)
    status: int | None = None
    parts: Sequence[str] | None = None


_BYTES, _TIME, _ESCAPED = "b64", "date", "esc"
_TAGS = frozenset((_BYTES, _TIME, _ESCAPED))
_JSON_TYPES = (str, int, float, type(None))


def to_json(wire: Any) -> Any:
    """Make wire types fit for JSON: bytes become ``{"b64": …}``, times ``{"date": …}``.

    A mapping that looks like one of these becomes ``{"esc": …}``. An ObjectId becomes its text.

    >>> from_json(to_json({"payload": b"x", "n": [1, 2], "m": {"b64": "?"}}))
    {'payload': b'x', 'n': [1, 2], 'm': {'b64': '?'}}
    """
    if isinstance(wire, _JSON_TYPES):
        return wire
    if isinstance(wire, bytes):
        return {_BYTES: base64.b64encode(wire).decode("ascii")}
    if isinstance(wire, Mapping):
        written = {k: to_json(v) for k, v in wire.items()}
        return {_ESCAPED: written} if len(written) == 1 and _TAGS & written.keys() else written
    if isinstance(wire, (list, tuple)):
        return [to_json(v) for v in wire]
    if isinstance(wire, datetime):
        return {_TIME: wire.isoformat()}
    return str(wire) if type(wire).__name__ == "ObjectId" else wire


def from_json(value: Any) -> Any:
    """Undo :func:`to_json`."""
    if isinstance(value, dict):
        if len(value) == 1 and _TAGS & value.keys():
            return _from_tagged(*next(iter(value.items())))
        return {k: from_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [from_json(v) for v in value]
    return value


def _from_tagged(tag: str, value: Any) -> Any:
    if tag == _BYTES:
        return base64.b64decode(value)
    if tag == _TIME:
        return datetime.fromisoformat(value)
    return {k: from_json(v) for k, v in value.items()}
