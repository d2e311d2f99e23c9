"""A call as bytes.

A call is packed where ``delay()`` is called and opened on a worker, inside our own
function. Girder and the scheduler only pass the bytes on. A call that is made of plain
values and of our own transforms is packed as JSON, which may come from anybody who may
start the task. Any other is pickled: opening it can run code of whoever made it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from girder_dask.errors import ArgumentError, PayloadTooLargeError
from girder_dask.protocol import unpickling
from girder_dask.protocol.json_values import dump_plain, load_plain
from girder_dask.protocol.transform_types import build, detached, written
from girder_dask.utils.module_loading import retry_import_deadlock
from girder_dask.utils.pytree import tree_map

__all__ = [
    "PACKING",
    "Call",
    "Dependency",
    "NotOpened",
    "Unpicklable",
    "is_plain",
    "open_call",
    "open_value",
    "pack_call",
    "pack_value",
]

#: What packing adds to a value of one piece, such as bytes or an array, in bytes at most.
PACKING = 4096

# The first byte of a call or a value says how the rest is written.
_PLAIN, _PICKLED = b"j", b"p"

# What stands for something else in a plain call.
_TRANSFORM, _JOB = "~transform", "~job"


@dataclass(frozen=True, slots=True)
class Dependency:
    """Stands among the arguments of a call for the value of another job."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Unpicklable:
    """Stands for a value that could not leave the process in which it was made."""

    reason: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function (None: the task's own), its arguments, and what is done with its result.

    ``session`` are attributes of the ``requests.Session`` of the job's Girder client.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    hooks: tuple[Any, ...] = ()
    function: Callable[..., Any] | None = None
    session: Mapping[str, Any] | None = None


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

    Clients and tokens that transforms hold are left out: a worker gives them those of
    the job.

    Parameters
    ----------
    limit
        The most bytes that the packed call may have, None for no limit.

    Raises
    ------
    ArgumentError
        If something in it cannot be pickled; it says which argument.
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
    if limit is not None and len(data) > limit:
        raise PayloadTooLargeError(
            f"The arguments of {task or 'the call'} take {len(data):,} bytes when packed, more "
            f"than the {limit:,} that are stored with a job (girder.max-payload). Upload large "
            "data to Girder and pass GirderFileId(file_id), or pass the JobResult of a job that "
            "makes it.",
            task=task,
        )
    return data


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
                "No job was made. Pass plain values, or a Girder file by its id.",
                task=task,
            )
    return ArgumentError(f"{task or 'The call'} cannot be pickled: {error}.", task=task)


def _pack_plain(call: tuple[Any, ...]) -> bytes:
    function, args, kwargs, hooks, session = call
    if function is not None or session is not None:
        raise TypeError("a function is not plain, and a session is not for everybody to change")
    return _PLAIN + dump_plain([args, kwargs, hooks], _special)


def _special(value: Any) -> tuple[str, Any]:
    """Write what a plain call may hold besides plain values; see :func:`open_call`."""
    if type(value) is Dependency:
        return _JOB, value.job_id
    transform = written(value)
    if transform is not None:
        return _TRANSFORM, transform
    raise TypeError(f"{type(value).__name__} is not plain")


def is_plain(payload: bytes) -> bool:
    """Say whether a packed call runs no code but that of an installed task when it is opened.

    >>> is_plain(pack_call((1, 'coins.png'), {})), is_plain(pack_call((range(3),), {}))
    (True, False)
    """
    return payload[:1] == _PLAIN


def open_call(payload: bytes, *, unpickle: bool = True) -> Call:
    """Open a packed call. Only a worker does this.

    Parameters
    ----------
    unpickle
        Whether a pickled call may be opened, which can run code of whoever made it.

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
    if kind != _PICKLED:
        raise ValueError("This is no call that girder_dask has packed.")
    if not unpickle:
        raise ArgumentError(
            "The call is pickled, and who started this job may not run code of their own, so it is "
            "not opened. Pass plain values."
        )
    function, args, kwargs, hooks, session = retry_import_deadlock(lambda: unpickling.loads(rest))
    return Call(args, kwargs, hooks, function, session)


def pack_value(value: Any) -> bytes:
    """Return what a function returned as bytes: plain values as JSON, others pickled.

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
    """A packed value cannot be opened here, or may not be; it says why, without a subject."""


def open_value(data: bytes, *, unpickle: bool) -> Any:
    """Open what :func:`pack_value` returned.

    Parameters
    ----------
    unpickle
        Whether a pickled value may be opened, which can run code of whoever made it.

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
            f"cannot be opened here ({type(e).__name__}: {e}). Install what it is made of, as on "
            "the workers, or have the task return plain values"
        ) from e
