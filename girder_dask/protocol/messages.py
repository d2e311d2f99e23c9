"""The messages between processes: submissions, job specs, events and updates.

Messages are frozen and carry a version. ``to_wire`` returns plain types that msgpack
(Dask's comms) can send; :mod:`girder_dask.protocol.wire_json` wraps the bytes among them
for HTTP. ``from_wire`` validates the fields. No ``repr`` shows a token or the bytes of a call.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import astuple, replace

from girder_dask.protocol.execution_options import OPTION_NAMES, ExecutionOptions
from girder_dask.protocol.patterns import JOB_ID, TASK_NAME, explain_mismatch
from girder_dask.protocol.wire_version import WIRE_VERSION, IncompatibleVersion, is_readable

__all__ = [
    "MAX_DELAY_S",
    "MAX_MOMENT_S",
    "MAX_NOTE_BYTES",
    "JobEvent",
    "JobId",
    "JobSpec",
    "JobUpdate",
    "MalformedMessage",
    "MapParent",
    "Message",
    "RetryRequest",
    "StoredResult",
    "Submission",
    "attempt_id",
]

logger = logging.getLogger(__name__)

# Types that the wire carries unchanged. Strings are not decoded from base64.
_WIRE_TYPES = (bytes, datetime)

# Fields that no repr shows.
_HIDDEN_FIELDS = frozenset(
    {"note", "retry_note", "exception", "payload", "result", "token", "value"}
)

# Whole numbers that MongoDB can store.
_Count = Annotated[int, Meta(ge=0, lt=2**62)]

_TaskName = Annotated[str, Meta(pattern=TASK_NAME, max_length=999)]

#: The latest time of a message, in seconds since the epoch: the last second of the year 9999.
MAX_MOMENT_S = 253_402_300_799

_Moment = Annotated[float, Meta(ge=0, le=MAX_MOMENT_S)]
# The name or the digest of an image.
_ImageText = Annotated[str, Meta(max_length=1000)]
# A status, and the time at which it was reached.
_StatusChange = Annotated[list[float], Meta(min_length=2, max_length=2)]

#: The most bytes that a run may leave for the next one.
MAX_NOTE_BYTES = 64 * 1024

#: The longest time from the submission of a job to its earliest start, in seconds: ten years.
MAX_DELAY_S = 3_652 * 86_400

#: The id of a job document.
JobId = Annotated[str, Meta(pattern=JOB_ID)]


class MalformedMessage(ValueError):
    """A message has a field that is missing or of another type."""


class _HidesSecrets:
    """A ``repr`` that shows no tokens and no packed calls or values."""

    __slots__ = ()

    def __rich_repr__(self) -> Any:
        for name in self.__struct_fields__:  # type: ignore[attr-defined]
            if name not in _HIDDEN_FIELDS:
                yield name, getattr(self, name)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"


class Message(_HidesSecrets):
    """Conversion of a struct to and from wire types. Unknown fields of the wire are ignored."""

    __slots__ = ()

    def to_wire(self) -> dict[str, Any]:
        """Return the version, and the fields that differ from their defaults."""
        wire: dict[str, Any] = msgspec.to_builtins(
            self, builtin_types=_WIRE_TYPES, enc_hook=_encode_foreign
        )
        wire["version"] = WIRE_VERSION
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """Build the message again.

        Raises
        ------
        MalformedMessage
            If a field is missing or of another type; it names the field.
        IncompatibleVersion
            If a release of girder_dask wrote it that this one cannot read.
        """
        version = wire.get("version")
        if not is_readable(version):
            raise IncompatibleVersion(
                f"A {cls.__name__} of message version {version!r} cannot be read here (this is "
                f"version {WIRE_VERSION}). Install the same girder_dask in Girder, on the "
                "scheduler and on the workers; 'girder-dask doctor' shows which differs."
            )
        try:
            return msgspec.convert(wire, cls, builtin_types=_WIRE_TYPES)
        except msgspec.ValidationError as e:
            raise MalformedMessage(explain_mismatch(e)) from e

    @classmethod
    def from_wires(cls, wires: Iterable[Mapping[str, Any]]) -> list[Self]:
        """Build many messages. Malformed ones are logged and left out.

        Raises
        ------
        IncompatibleVersion
            If a release of girder_dask wrote them that this one cannot read.
        """
        messages = []
        for wire in wires:
            try:
                messages.append(cls.from_wire(wire))
            except MalformedMessage as e:
                logger.error("A %s of job %s is malformed: %s", cls.__name__, wire.get("id"), e)
        return messages


def _encode_foreign(value: Any) -> str:
    if type(value).__name__ == "ObjectId":
        return str(value)
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} cannot be sent")


# Characters of a task's name in a Dask key.
_MAX_NAME_CHARACTERS = 100


class JobSpec(Message, ExecutionOptions, frozen=True):
    """All that is needed to run one attempt of a job, with its execution options.

    Attributes
    ----------
    id
        The id of the job document, 24 hexadecimal digits.
    attempt
        1 for the first run. Each new run of the job is a new attempt.
    task
        The task, as ``package.module:qualified_name``.
    payload
        The pickled call (see :mod:`girder_dask.protocol.payload`). Only a worker opens it.
    token
        A Girder token that belongs to this job alone.
    girder_api_url
        Girder's REST API as code inside Girder gave it for this call. The configuration of a
        worker takes precedence.
    default_api_url
        Girder's REST API from Girder's settings, used if no other address is known.
    package
        The distribution that holds the task, with its version, for error messages.
    title
        The title of the job.
    dependencies
        The ids of the jobs whose values are among the arguments.
    retry_note
        What the last run has left for this one, if that asked for it (:class:`RetryRequest`).
    not_before
        The earliest start, in seconds since the epoch. Until then the job is queued and holds no
        thread.
    trusted
        Whether the author of the call may run code of their own on the cluster. Jobs of others run
        installed tasks only, with plain arguments, and send to Girder only files of the job's
        directory. The rights of the job's token do not depend on it.
    """

    id: str
    attempt: int
    task: str
    payload: bytes = b""
    token: str | None = None
    girder_api_url: str | None = None
    default_api_url: str | None = None
    package: str | None = None
    title: str = ""
    dependencies: Sequence[str] | None = None
    trusted: bool = False
    not_before: float | None = None
    retry_note: bytes | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, and always ``trusted``.

        Another version must not take its absence for trust.
        """
        return {**Message.to_wire(self), "trusted": self.trusted}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the values without their names, and only options that are set.

        Each Dask task holds a spec. A worker of another release, with fewer or more fields at the
        end, can read it.
        """
        values = astuple(self)
        fields, options = values[:_FIRST_OPTION], values[_FIRST_OPTION:]
        return _rebuild_spec, (fields,) if options == _DEFAULT_OPTIONS else (fields, options)

    @property
    def key(self) -> str:
        """The Dask key of this attempt, which no other attempt has."""
        return f"{_key_prefix(self.task)}-{self.id}-{self.attempt}"


# Options are keywords, and come after the other fields.
_FIRST_OPTION = len(JobSpec.__struct_fields__) - len(OPTION_NAMES)
_DEFAULT_OPTIONS = astuple(ExecutionOptions())


def _rebuild_spec(fields: Sequence[Any], options: Sequence[Any] = ()) -> JobSpec:
    return JobSpec(*fields[:_FIRST_OPTION], **dict(zip(OPTION_NAMES, options, strict=False)))


@functools.lru_cache(maxsize=1024)
def _key_prefix(task: str) -> str:
    return task.rpartition(":")[2].replace(".", "_").strip("<>")[:_MAX_NAME_CHARACTERS] or "job"


class RetryRequest(_HidesSecrets, Struct, frozen=True, omit_defaults=True):
    """What a run asks for that ends without a result: another attempt of its job.

    ``not_before`` is the earliest start of that attempt, in seconds since the epoch. ``note`` is
    what this run leaves for it. ``timeout`` (0 for none), ``priority`` and ``resources`` are in
    place of those of the job, None if they stay.
    """

    not_before: _Moment
    note: Annotated[bytes, Meta(max_length=MAX_NOTE_BYTES)] | None = None
    timeout: Annotated[float, Meta(ge=0)] | None = None
    priority: Annotated[int, Meta(gt=-(2**31), lt=2**31)] | None = None
    resources: Mapping[str, float] | None = None

    def apply_to(self, spec: JobSpec) -> JobSpec:
        """Return how the job runs next."""
        options = {"timeout": self.timeout or None, "resources": self.resources or None}
        changed = {n: v for n, v in options.items() if getattr(self, n) is not None}
        if self.priority is not None:
            changed["priority"] = self.priority
        return replace(spec, not_before=self.not_before, retry_note=self.note, **changed)


class JobEvent(Message, Struct, frozen=True, omit_defaults=True):
    """Something that happened to an attempt of a job at a time, in seconds since the epoch.

    ``log`` is text to append. ``progress`` has any of ``total``, ``current`` and ``message``.
    ``result`` is the packed return value. ``error`` is one line that says why the job ended in
    ERROR, ``exception`` is packed by :func:`girder_dask.protocol.exceptions.pack_exception`, and
    ``permanent`` is true if another try would end in the same way. ``pending_reason`` is why the
    job waits in the queue, empty if only for its turn. ``images`` are digests of images of
    containers, by name. ``retry`` is what a run asks for in place of an end. An event of a run
    names the run and the address of its worker.
    """

    id: str
    attempt: int
    time: float
    status: int | None = None
    log: str | None = None
    progress: Mapping[str, Any] | None = None
    result: bytes | None = None
    error: str | None = None
    exception: bytes | None = None
    pending_reason: str | None = field(default=None, name="waits")
    images: Mapping[str, str] | None = None
    run: str | None = None
    worker: str | None = None
    permanent: bool | None = None
    retry: RetryRequest | None = None

    @property
    def is_bare(self) -> bool:
        """True if the event has no content and reports only that the job exists."""
        content = (self.status, self.log, self.progress, self.result)
        reasons = (self.error, self.exception, self.pending_reason, self.images, self.retry)
        return all(value is None for value in (*content, *reasons))


def attempt_id(job_id: str, attempt: int) -> str:
    """Return the text that names an attempt of a job in an answer to updates.

    >>> attempt_id("5f0c1b6e8a7d4c0012345678", 2)
    '5f0c1b6e8a7d4c0012345678-2'
    """
    return f"{job_id}-{attempt}"


class JobUpdate(Message, Struct, frozen=True, omit_defaults=True):
    """The events of an attempt that Girder has not acknowledged, merged.

    ``sequence`` grows with each update of an attempt, so Girder applies an update that comes twice
    only once. ``statuses`` are ``[status, time]`` pairs in order.
    """

    id: str
    attempt: _Count
    sequence: _Count
    statuses: list[_StatusChange] | None = None
    log: str | None = None
    progress: Mapping[str, Any] | None = None
    result: bytes | None = None
    error: str | None = None
    exception: bytes | None = None
    pending_reason: str | None = field(default=None, name="waits")
    images: dict[_ImageText, _ImageText] | None = None
    retry: RetryRequest | None = None


class Submission(Message, ExecutionOptions, frozen=True):
    """A call to be recorded as a job, with its execution options.

    ``args`` and ``kwargs`` are shown on the job: plain values, transforms as their
    ``_repr_model_``. ``payload`` is the packed call, with its result hooks, that a worker opens.
    ``dependencies`` are the ids of the jobs whose values are among the arguments. ``not_before`` is
    the earliest start, in seconds since the epoch. ``user`` is a Girder user document, or None for
    the user of the request; it does not travel.
    """

    task: _TaskName
    payload: bytes
    package: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    type: str = "dask"
    public: bool = False
    handler: str | None = None
    other_fields: Mapping[str, Any] = field(default_factory=dict)
    user: Any = None
    token: Any = None
    api_url: str | None = None
    dependencies: Sequence[JobId] = ()
    not_before: _Moment | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the fields for Girder without the user: Girder takes the sender."""
        return Message.to_wire(replace(self, user=None))


class MapParent(Message, Struct, frozen=True, omit_defaults=True):
    """The parent job of many calls.

    ``task`` is theirs, named also if there are no calls. ``total`` is the expected number of calls
    that are sent in pieces.
    """

    title: str
    type: str = "dask"
    public: bool = False
    handler: str | None = None
    other_fields: Mapping[str, Any] = field(default_factory=dict)
    user: Any = None
    task: _TaskName | None = None
    total: _Count | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the fields for Girder without the user: Girder takes the sender."""
        return Message.to_wire(replace(self, user=None))


class StoredResult(_HidesSecrets, Struct, frozen=True):
    """The stored outcome of a job: the packed value, or why there is none.

    ``exception`` is what the task raised, packed by
    :func:`girder_dask.protocol.exceptions.pack_exception`. ``status`` is the state of the job, if
    it is known. ``parts`` are the ids of the jobs under the parent job of a map, in the order of
    the calls, and None for other jobs.
    """

    value: bytes | None = None
    error: str | None = None
    exception: bytes | None = None
    status: int | None = None
    parts: Sequence[str] | None = None
