"""Environment variables of one job, in a process that it shares with others.

Variables that a job sets in ``os.environ`` or ``os.environb`` are visible only to the job, its
threads and the subprocesses that Python starts for it. C code reads the environment of the process,
so variables are set there too: the last job that sets a variable wins, and its value is withdrawn
when the job ends. Variables that a module sets during its import stay: an import happens once in a
process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any

__all__ = ["JobEnvironment", "install", "is_importing", "job_environment"]

_IMPORT_SYSTEM_FILE = "<frozen importlib._bootstrap>"


class JobEnvironment:
    """The variables that a job has set: values by name, both bytes, None if deleted."""

    __slots__ = ("has_ended", "own")

    def __init__(self) -> None:
        self.own: dict[bytes, bytes | None] = {}
        self.has_ended = False

    def set(self, key: bytes, value: bytes | None) -> None:
        """Set a variable for this job, and for C code."""
        with _lock:
            if not self.has_ended:
                _set_for_c(key, value)
                writers = _writers.setdefault(key, [])
                if self in writers:
                    writers.remove(self)
                writers.append(self)
            self.own[key] = value

    def end(self) -> None:
        """Withdraw the variables from C code. Threads that outlive the job keep them."""
        with _lock:
            self.has_ended = True
            for key in self.own:
                writers = _writers.get(key, [])
                if self not in writers:
                    continue
                writers.remove(self)
                if writers:
                    _set_for_c(key, writers[-1].own[key])
                else:
                    del _writers[key]
                    _set_for_c(key, _of_process().get(key))

    def become_process(self) -> None:
        """Make these the variables of the whole process, after the job has forked it."""
        of_process = _of_process()
        for key in _writers:
            if key not in self.own:
                _set_for_c(key, of_process.get(key))
        for key, value in self.own.items():
            _set_for_c(key, value)
            if value is None:
                of_process.pop(key, None)
            else:
                of_process[key] = value


_current: ContextVar[JobEnvironment | None] = ContextVar("girder_dask_variables", default=None)
_lock = threading.RLock()
# The jobs that have set each variable for C code, in order.
_writers: dict[bytes, list[JobEnvironment]] = {}


def _of_process() -> dict[bytes, bytes]:
    data: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined] # noqa: SLF001
    return data


def _set_for_c(key: bytes, value: bytes | None) -> None:
    if value is None:
        os.unsetenv(key)
    else:
        os.putenv(key, value)


def is_importing() -> bool:
    """Return True if the calling thread is importing a module."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - it is only read
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM_FILE:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def job_environment() -> Iterator[JobEnvironment]:
    """Give the code in the block, and what it starts, separate environment variables.

    Examples
    --------
    >>> install()
    >>> with job_environment():
    ...     os.environ['GDAL_CACHEMAX'] = '64'
    ...     print(os.environ['GDAL_CACHEMAX'])
    64
    >>> 'GDAL_CACHEMAX' in os.environ
    False
    """
    own = JobEnvironment()
    token = _current.set(own)
    try:
        yield own
    finally:
        _current.reset(token)
        own.end()


class _Environ(os._Environ):  # type: ignore[type-arg] # noqa: SLF001 - a replacement of one
    """An ``os.environ`` in which each job sees what it has set."""

    def __getitem__(self, key: Any) -> Any:
        own = _current.get()
        if own is not None and own.own:
            encoded = self.encodekey(key)
            if encoded in own.own:
                value = own.own[encoded]
                if value is None:
                    raise KeyError(key)
                return self.decodevalue(value)
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        own = _current.get()
        if own is None or is_importing():
            super().__setitem__(key, value)
        else:
            own.set(self.encodekey(key), self.encodevalue(value))

    def __delitem__(self, key: Any) -> None:
        own = _current.get()
        if own is None or is_importing():
            super().__delitem__(key)
        elif key in self:
            own.set(self.encodekey(key), None)
        else:
            raise KeyError(key)

    def _now(self) -> dict[bytes, bytes]:
        own = _current.get()
        data = _of_process()
        if own is None or not own.own:
            return data
        merged: dict[bytes, bytes | None] = {**data, **own.own}
        return {key: value for key, value in merged.items() if value is not None}

    def __iter__(self) -> Iterator[Any]:
        for key in list(self._now()):
            yield self.decodekey(key)

    def __len__(self) -> int:
        return len(self._now())

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{self.decodekey(key)!r}: {self.decodevalue(value)!r}"
            for key, value in self._now().items()
        )
        return f"environ({{{shown}}})"


def install() -> None:
    """Make ``os.environ`` of this process separate for each job. A second call does nothing."""
    for environ in (os.environ, getattr(os, "environb", None)):
        if type(environ) is os._Environ:  # noqa: SLF001
            environ.__class__ = _Environ


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    own = _current.get()
    if own is not None:
        own.become_process()
        _current.set(None)
        _writers.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
