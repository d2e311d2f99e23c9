"""A call as bytes.

``delay()`` packs a call, and a worker opens it; Girder and the scheduler only pass the bytes on. A
call of plain values and of transforms of this package is packed as JSON, which is accepted from
everyone who may start the task. Any other call is pickled: opening it can run code of its author.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from girder_dask.errors import ArgumentError, PayloadTooLargeError
from girder_dask.protocol import unpickling
from girder_dask.protocol.celery_message import CeleryMessage
from girder_dask.protocol.plain_values import dump_plain, load_plain
from girder_dask.protocol.transform_types import build, detached, written
from girder_dask.utils.module_loading import retry_import_deadlock
from girder_dask.utils.pytree import tree_map

__all__ = [
    "PACKING_OVERHEAD_BYTES",
    "Call",
    "Dependency",
    "NotOpened",
    "Unpicklable",
    "is_plain",
    "open_call",
    "open_value",
    "pack_call",
    "pack_message",
    "pack_value",
]

#: The most bytes that packing adds to a value of one piece, such as bytes or an array.
PACKING_OVERHEAD_BYTES = 4096

# The first byte of a packed call or value: how the rest is encoded.
_PLAIN, _PICKLED, _MESSAGE = b"j", b"p", b"m"

# Tags of placeholders in a plain call.
_TRANSFORM, _JOB = "~transform", "~job"


@dataclass(frozen=True, slots=True)
class Dependency:
    """Placeholder among the arguments of a call for the value of another job."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Unpicklable:
    """Placeholder for a value that could not leave its process."""

    reason: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function (None for the task's own), its arguments and its result hooks.

    ``session`` are attributes of the ``requests.Session`` of the job's Girder client. A call with
    a ``message`` of Celery has nothing else.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    hooks: tuple[Any, ...] = ()
    function: Callable[..., Any] | None = None
    session: Mapping[str, Any] | None = None
    message: CeleryMessage | None = None


def pack_call(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    hooks: Sequence[Any] = (),
    function: Callable[..., Any] | None = None,
    *,
    session: Mapping[str, Any] | None = None,
    task: str | None = None,
    limit: int | None = None,
) -> bytes:
    """Return a call as bytes: as JSON if it is plain, else pickled.

    Clients and tokens that transforms hold are left out; a worker sets those of the job.

    Parameters
    ----------
    limit
        The most bytes that the packed call may have, None for no limit.

    Raises
    ------
    ArgumentError
        If an argument cannot be pickled; the message names it.
    PayloadTooLargeError
        If it is larger than ``limit``.

    Examples
    --------
    >>> open_call(pack_call((1,), {'b': 2})).kwargs
    {'b': 2}
    """
    import cloudpickle

    call: tuple[Any, ...] = (
        function,
        tree_map(detached, tuple(args)),
        tree_map(detached, dict(kwargs)),
        tree_map(detached, tuple(hooks)),
        session,
    )
    try:
        data = _pack_plain(call)
    except (TypeError, ValueError, RecursionError):  # ValueError: an integer of many digits
        try:
            data = _PICKLED + cloudpickle.dumps(call)
        except Exception as e:
            raise _argument_error(call, task, e) from e
    _check_size(data, task, limit)
    return data


def pack_message(message: CeleryMessage, limit: int | None = None) -> bytes:
    """Return a message of Celery as bytes.

    Raises
    ------
    ArgumentError
        If one of its headers cannot be packed.
    PayloadTooLargeError
        If it is larger than ``limit``.
    """
    try:
        data = _MESSAGE + msgspec.json.encode(message.to_wire())
    except (TypeError, ValueError, RecursionError) as e:
        raise ArgumentError(
            f"A header of the message for {message.task} cannot be sent: {e}. No job was created. "
            "Headers hold None, bool, numbers, text, lists and mappings.",
            task=message.task_name,
        ) from e
    _check_size(data, message.task_name, limit)
    return data


def _check_size(data: bytes, task: str | None, limit: int | None) -> None:
    if limit is not None and len(data) > limit:
        raise PayloadTooLargeError(
            f"The arguments of {task or 'the call'} take {len(data):,} bytes when packed, more "
            f"than the {limit:,} that are stored with a job (girder.max-payload). Upload large "
            "data to Girder and pass GirderFileId(file_id), or pass the JobResult of a job that "
            "makes it.",
            task=task,
        )


def _argument_error(call: tuple[Any, ...], task: str | None, error: Exception) -> ArgumentError:
    import cloudpickle

    _, args, kwargs, hooks, _ = call
    named = [(f"argument {i + 1}", a) for i, a in enumerate(args)]
    named += [(f"argument {k!r}", v) for k, v in kwargs.items()]
    named += [(f"result hook {i + 1}", h) for i, h in enumerate(hooks)]
    for name, value in named:
        try:
            cloudpickle.dumps(value)
        except Exception as e:  # noqa: BLE001 - any error of a foreign __reduce__ is the answer
            return ArgumentError(
                f"{name[0].upper()}{name[1:]} of {task or 'the call'}, of type "
                f"{type(value).__module__}.{type(value).__qualname__}, cannot be pickled: {e}. "
                "No job was created. Pass plain values, or a Girder file by its id.",
                task=task,
            )
    return ArgumentError(f"{task or 'The call'} cannot be pickled: {error}.", task=task)


def _pack_plain(call: tuple[Any, ...]) -> bytes:
    function, args, kwargs, hooks, session = call
    if function is not None or session is not None:
        raise TypeError("a call with a function or a session is not plain")
    return _PLAIN + dump_plain([args, kwargs, hooks], _special)


def _special(value: Any) -> tuple[str, Any]:
    """Return the tag and the plain value of a placeholder or transform in a plain call."""
    if type(value) is Dependency:
        return _JOB, value.job_id
    transform = written(value)
    if transform is not None:
        return _TRANSFORM, transform
    raise TypeError(f"{type(value).__name__} is not plain")


def is_plain(payload: bytes) -> bool:
    """Return True if opening a packed call runs only code of an installed task.

    That holds for a message of Celery as well: a worker that does not trust it opens it only if it
    is data.

    >>> is_plain(pack_call((1, 'coins.png'), {})), is_plain(pack_call((range(3),), {}))
    (True, False)
    """
    return payload[:1] in (_PLAIN, _MESSAGE)


def open_call(payload: bytes, *, unpickle: bool = True) -> Call:
    """Open a packed call. Only a worker does this.

    Parameters
    ----------
    unpickle
        Whether a pickled call may be opened, which can run code of its author.

    Raises
    ------
    Exception
        Whatever unpickling raises, for example ModuleNotFoundError for a package that
        is not installed here.
    """
    kind, rest = payload[:1], payload[1:]
    if kind == _PLAIN:
        special = {_TRANSFORM: build, _JOB: lambda job_id: Dependency(str(job_id))}
        args, kwargs, hooks = retry_import_deadlock(lambda: load_plain(rest, special))
        return Call(args=tuple(args), kwargs=dict(kwargs), hooks=tuple(hooks))
    if kind == _MESSAGE:
        return Call(message=CeleryMessage.from_wire(msgspec.json.decode(rest)))
    if kind != _PICKLED:
        raise ValueError("These bytes are not a call that girder_dask packed.")
    if not unpickle:
        raise ArgumentError(
            "The call is pickled, and the user who started this job may not run code of "
            "their own, so the call is not opened. Pass plain values."
        )
    function, args, kwargs, hooks, session = retry_import_deadlock(lambda: unpickling.loads(rest))
    return Call(args, kwargs, hooks, function, session)


def pack_value(value: Any) -> bytes:
    """Return a result as bytes: plain values as JSON, others pickled.

    Raises
    ------
    Exception
        Whatever pickling raises.
    """
    try:
        return _PLAIN + dump_plain(value)
    except (TypeError, ValueError, RecursionError):  # ValueError: an integer of many digits
        pass
    try:
        return _PICKLED + pickle.dumps(value, protocol=5)
    except Exception:  # noqa: BLE001 - of a class that came along with the function, perhaps
        import cloudpickle

        return _PICKLED + bytes(cloudpickle.dumps(value))


class NotOpened(ValueError):
    """A packed value cannot or may not be opened here. The message has no subject."""


def open_value(data: bytes, *, unpickle: bool) -> Any:
    """Return the value that :func:`pack_value` packed.

    Parameters
    ----------
    unpickle
        Whether a pickled value may be opened, which can run code of its author.

    Raises
    ------
    NotOpened
        If the value is pickled and ``unpickle`` is false, or whatever opening it raises.

    Examples
    --------
    >>> open_value(pack_value((24, 'coins')), unpickle=False)
    (24, 'coins')
    """
    kind, rest = data[:1], data[1:]
    if kind == _PLAIN:
        return load_plain(rest)
    if not unpickle:
        raise NotOpened(
            "is not opened here: it is pickled, as it holds more than None, bool, numbers, str, "
            "bytes, list, tuple and dict. Only a notebook, a script or a task of its owner "
            "unpickles it. Have the task return plain values, or upload a file"
        )
    try:
        return retry_import_deadlock(lambda: unpickling.loads(rest))
    except (Exception, SystemExit) as e:
        raise NotOpened(
            f"cannot be opened here ({type(e).__name__}: {e}). Install the packages that it needs, "
            "as on the workers, or have the task return plain values"
        ) from e
