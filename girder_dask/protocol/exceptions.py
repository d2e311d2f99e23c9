"""Exceptions of tasks: packed on the worker, raised again where the result is requested."""

from __future__ import annotations

import builtins
import functools
import threading
from collections.abc import Mapping
from typing import Any

from girder_dask.errors import JobFailed, JobInterrupted
from girder_dask.protocol import unpickling
from girder_dask.protocol.plain_values import dump_plain, load_plain
from girder_dask.protocol.redaction import clean_data
from girder_dask.utils.foreign_objects import call_or_default, exact_text

__all__ = ["CarriedError", "RemoteTraceback", "failure", "open_exception", "pack_exception"]

# The flag of classes that Python code creates at run time (Py_TPFLAGS_HEAPTYPE).
_HEAP_TYPE_FLAG = 1 << 9
_MAX_EXCEPTION_BYTES = 128 * 1024
_MAX_TRACEBACK_CHARACTERS = 64 * 1024
# These exceptions control the flow of the code that they pass through, so they must not come from
# another process. Nor must SystemExit and the like, which are not Exceptions.
_CONTROL_FLOW = (StopIteration, StopAsyncIteration)


def pack_exception(error: BaseException, text: str) -> bytes:
    """Return an exception of a task as bytes, to be raised in another process.

    The secrets of the runs in this process are blanked.

    Parameters
    ----------
    text
        Its formatted traceback.

    Examples
    --------
    >>> error, text = open_exception(pack_exception(KeyError('coins'), 'Traceback'), unpickle=False)
    >>> error, text
    (KeyError('coins'), 'Traceback')
    """
    import cloudpickle

    kind, args = type(error), _arguments_of(error)
    known: dict[str, Any] = {
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "text": text[-_MAX_TRACEBACK_CHARACTERS:],
    }
    try:
        if kind.__module__ == "builtins" and len(dump_plain(args)) <= _MAX_EXCEPTION_BYTES:
            known["args"] = args
    except (TypeError, ValueError, RecursionError):
        pass  # only the pickle holds it then
    try:
        # Not the exception itself: many cannot be unpickled, as their __init__ takes other
        # arguments than it passes to the base class.
        pickled = cloudpickle.dumps((kind, args, vars(error)))
        if len(pickled) <= _MAX_EXCEPTION_BYTES:
            known["pickled"] = clean_data(pickled)
    except JobInterrupted:
        raise
    except BaseException as e:  # noqa: BLE001 - a foreign __reduce__ may raise anything
        known["unpicklable"] = call_or_default(functools.partial(_repr_of, e), type(e).__name__)
    return clean_data(dump_plain(known))


def _repr_of(error: BaseException) -> str:
    return exact_text(repr(error))[:1000]


def _arguments_of(error: BaseException) -> tuple[Any, ...]:
    """Return the arguments of an exception, including those that OSError leaves out of ``args``."""
    if isinstance(error, OSError) and error.filename is not None:
        more = (None, error.filename2) if error.filename2 is not None else ()
        return (*error.args, error.filename, *more)
    return error.args


def _rebuilt(kind: type[Any], args: tuple[Any, ...], state: Mapping[str, Any]) -> Any:
    """Rebuild an exception without its own ``__init__``, which may take other arguments.

    Raises
    ------
    TypeError, ValueError
        If that is not possible.
    """
    error = kind.__new__(kind, *args)
    # Built-in classes hold some arguments in fields, such as errno.
    native = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE_FLAG)
    native.__init__(error, *args)  # type: ignore[misc]
    vars(error).update(state)
    return error


def open_exception(data: bytes, *, unpickle: bool) -> tuple[BaseException | None, str]:
    """Return the exception and the traceback that :func:`pack_exception` packed.

    Parameters
    ----------
    unpickle
        Whether it may be unpickled, which can run code of the task. A built-in exception with
        plain arguments needs no unpickling.

    Returns
    -------
    tuple
        The exception, or None if it cannot be rebuilt, and its traceback as text.
    """
    known = load_plain(data)
    text = str(known.get("text", ""))
    if unpickle and "pickled" in known:
        try:
            error = _rebuilt(*unpickling.loads(known["pickled"]))
        except Exception:  # noqa: BLE001 - for example a package that is not installed here
            error = None
        if isinstance(error, BaseException):
            return error, text
    module, _, name = str(known.get("type", "")).partition(".")
    kind = getattr(builtins, name, None) if module == "builtins" else None
    if isinstance(kind, type) and issubclass(kind, Exception) and "args" in known:
        try:
            return _rebuilt(kind, known["args"], {}), text
        except (TypeError, ValueError):  # its arguments were changed after its creation
            return None, text
    return None, text


class RemoteTraceback(Exception):
    """The traceback of a task on a worker; the cause of the exception that ``get()`` raises."""

    def __init__(self, job_id: str, text: str) -> None:
        super().__init__(job_id, text)
        self.job_id = job_id
        self.text = text

    def __str__(self) -> str:
        return f"on the worker that ran job {self.job_id}\n\n{self.text}"


# The last exception that each thread packed. Dask copies an exception in the worker to test whether
# it can be pickled; that copy is not opened.
_packed_last = threading.local()


class CarriedError(JobFailed):
    """An exception of a task on its way through Dask.

    The process that requests the exception opens it, not the worker: that runs code of the task's
    author.
    """

    def __init__(self, line: str, packed: bytes, job_id: str) -> None:
        super().__init__(line, job_id=job_id)
        self._packed = packed
        _, text = open_exception(packed, unpickle=False)
        self.__cause__ = RemoteTraceback(job_id, text) if text else None

    def __reduce__(self) -> tuple[Any, ...]:
        _packed_last.data = self._packed
        return _arrived, (str(self), self._packed, self.job_id)


def _arrived(line: str, packed: bytes, job_id: str) -> BaseException:
    """Return an exception that Dask has transferred."""
    carried = CarriedError(line, packed, job_id)
    if _packed_last.__dict__.pop("data", None) == packed:
        return carried
    error, _ = open_exception(packed, unpickle=True)
    if not isinstance(error, Exception) or isinstance(error, _CONTROL_FLOW):
        return carried
    error.__cause__ = carried.__cause__
    return error


def failure(
    job_id: str, reason: str | None, exception: bytes | None, *, unpickle: bool
) -> JobFailed:
    """Return the exception to raise for a job that ended in ERROR.

    Parameters
    ----------
    job_id
        The job.
    reason
        One line that says why it failed.
    exception
        The task's exception, packed by :func:`pack_exception`.
    unpickle
        Whether it may be unpickled here.

    Returns
    -------
    JobFailed
        If possible, also an instance of the class that the task raised, with its arguments and
        attributes; not for SystemExit, KeyboardInterrupt and the like, which would end the calling
        program. Its cause holds the traceback of the worker.

    Examples
    --------
    >>> packed = pack_exception(ValueError('no coins'), 'Traceback …')
    >>> error = failure('5f3c', 'ValueError: no coins', packed, unpickle=False)
    >>> isinstance(error, ValueError), isinstance(error, JobFailed), str(error), error.job_id
    (True, True, 'no coins', '5f3c')
    """
    original: BaseException | None = None
    text = ""
    if exception is not None:
        original, text = open_exception(exception, unpickle=unpickle)
    failed = _as_failure(original, job_id) if original is not None else None
    if failed is None:
        failed = JobFailed(f"Job {job_id} failed: {reason or 'see its log'}", job_id=job_id)
    if text:
        failed.__cause__ = RemoteTraceback(job_id, text)
    return failed


def _as_failure(original: BaseException, job_id: str) -> JobFailed | None:
    """Return an exception that is both JobFailed and what the task raised, None if impossible."""
    kind = type(original)
    if isinstance(original, JobFailed):
        return original
    if not issubclass(kind, Exception) or issubclass(kind, _CONTROL_FLOW):
        return None
    # Pickled in parts: the class may not accept its own args.
    parts = (kind, _arguments_of(original), dict(vars(original)))
    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__str__": kind.__str__,
        "__repr__": kind.__repr__,
        "__reduce__": lambda self: (_again, (parts, job_id, self.__cause__)),
    }
    try:
        both: Any = type(kind.__name__, (JobFailed, kind), names)
        failed: JobFailed = _rebuilt(both, *parts[1:])
    except (TypeError, ValueError):
        return None
    failed.job_id = job_id
    return failed


def _again(
    parts: tuple[type[Any], tuple[Any, ...], Mapping[str, Any]],
    job_id: str,
    cause: BaseException | None,
) -> BaseException:
    """Rebuild the exception where it is unpickled."""
    original = _rebuilt(*parts)
    failed = _as_failure(original, job_id) or original
    failed.__cause__ = cause
    return failed
