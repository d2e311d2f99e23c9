"""``sys.stdin``, ``sys.stdout`` and ``sys.stderr``, separate for each job.

A stream that a task assigns to one of them is kept with its job (see
:mod:`girder_dask.worker.job_log.job_local_state`): code of other jobs, and of the worker, does not
see it. This needs two mechanisms. ``sys`` gets a class with properties, for Python code that reads
and assigns. ``print`` and other C code read ``sys.__dict__``, which holds a *proxy* that looks up
the stream of the current job. Properties never return a proxy: a task that wraps its stream would
create a cycle.

Known limits
------------
A stream that is set in ``sys.__dict__`` directly, or by C code with ``PySys_SetObject``, applies to
the whole process until the end of a run restores it. Looking up an attribute of ``sys`` takes 30 to
60 ns instead of 11.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from pathlib import Path
from typing import Any, TextIO

from girder_dask.worker.capture.module_properties import add_properties, remove_properties
from girder_dask.worker.capture.routing_streams import RoutingStream
from girder_dask.worker.interruption.thread_interrupter import (
    pending_interrupts,
    raise_pending_interrupt,
)
from girder_dask.worker.job_log.log import JobLog, current
from girder_dask.worker.job_log.print_frames import write_code

__all__ = [
    "flush_assigned",
    "flush_originals",
    "install",
    "is_captured",
    "job_stream",
    "restore",
    "uninstall",
]

_NAMES = ("stdin", "stdout", "stderr")

#: Most earlier assignments that a task may restore.
_MAX_EARLIER_STREAMS = 16

#: Stands for a stream that a task has deleted.
_DELETED: Any = object()


class _StreamProxy:
    """The object in ``sys.__dict__``, a proxy of the stream of the current job.

    Parameters
    ----------
    base
        The stream of a job that has assigned none. None for ``stdin``.
    original
        The stream that the proxy replaces. None in a process without a console.
    """

    def __init__(self, name: str, base: RoutingStream | None, original: TextIO | None) -> None:
        self.name_in_sys = name
        self.base = base
        self.original = original
        #: The stream outside of jobs.
        self.outside: Any = original if base is None or original is None else base

    def write(self, text: str) -> int:
        """Write to the stream of the current job."""
        log = current.get()
        if log is not None:
            own = log.local_state
            if not own or self.name_in_sys not in own:
                count = log.write(text, self.name_in_sys)
                if pending_interrupts:
                    raise_pending_interrupt(text)
                return count
        stream = self.stream()
        if stream is None:  # as print() does
            return len(text)
        return int(stream.write(text) or 0)

    def flush(self) -> None:
        """Flush the stream of the current job."""
        stream = self.stream()
        if stream is not None:
            stream.flush()

    def stream(self) -> Any:
        """Return the stream of the current job."""
        log = current.get()
        if log is None:
            return self.outside
        stream = log.local_state.get(self.name_in_sys, self)
        if stream is _DELETED:
            raise RuntimeError(f"lost sys.{self.name_in_sys}")
        return self.of_jobs if stream is self else stream

    @property
    def of_jobs(self) -> Any:
        """The stream of jobs that have assigned none."""
        return self.outside if self.base is None else self.base

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream(), name)

    # -- properties of sys -----------------------------------------------------

    def get(self, module: Any) -> Any:
        log = current.get()
        if log is None:
            value = module.__dict__[self.name_in_sys]
            return self.outside if value is self else value
        own = log.local_state
        if own and self.name_in_sys in own:
            if own[self.name_in_sys] is _DELETED:
                raise AttributeError(f"module 'sys' has no attribute {self.name_in_sys!r}")
            return own[self.name_in_sys]
        return self.of_jobs

    def get_original(self, module: Any) -> Any:
        value = module.__dict__[f"__{self.name_in_sys}__"]
        return value if current.get() is None or self.base is None else self.base

    def set(self, module: Any, value: Any) -> None:
        log = current.get()
        if log is None:
            self.outside = self.of_jobs if value is self else value
            module.__dict__[self.name_in_sys] = self
        else:
            self._assign(log, value)

    def delete(self, module: Any) -> None:
        log = current.get()
        if log is None:
            del module.__dict__[self.name_in_sys]
        else:
            self._assign(log, _DELETED)

    def _assign(self, log: JobLog, value: Any) -> None:
        name = self.name_in_sys
        earlier: list[Any] = log.local_state.setdefault((name, "earlier"), [])
        if value is self:
            # unittest.mock has read the proxy from sys.__dict__, and restores it.
            if earlier:
                log.local_state[name] = earlier.pop()
            else:
                log.local_state.pop(name, None)
            return
        process = (self.base, self.original, self.outside, sys.__dict__.get(f"__{name}__"))
        if value is not None and any(value is each for each in process):
            log.local_state.pop(name, None)
            earlier.clear()
            return
        positions = [n for n, each in enumerate(earlier) if each is value]
        if positions:
            del earlier[positions[0] :]
        elif name in log.local_state:
            earlier.append(log.local_state[name])
            del earlier[:-_MAX_EARLIER_STREAMS]
        log.local_state[name] = value


write_code.add(_StreamProxy.write.__code__)

_proxies: dict[str, _StreamProxy] = {}
_class: type[types.ModuleType] | None = None


def install() -> None:
    """Install the proxies and the properties."""
    global _class
    properties: dict[str, Any] = {}
    for name in _NAMES:
        original = getattr(sys, name)
        base = None
        if name != "stdin":
            base = RoutingStream(_null_stream() if original is None else original, name)
        proxy = _proxies[name] = _StreamProxy(name, base, original)
        properties[name] = property(proxy.get, proxy.set, proxy.delete)
        if base is not None:
            properties[f"__{name}__"] = property(proxy.get_original, _setter(f"__{name}__"))
        sys.__dict__[name] = proxy
    _class = add_properties(sys, properties)


def _null_stream() -> TextIO:
    return Path(os.devnull).open("w")


def _setter(name: str) -> Any:
    def set_in_process(module: Any, value: Any) -> None:
        module.__dict__[name] = value

    return set_in_process


def uninstall() -> None:
    """Undo :func:`install`, unless something has been replaced since."""
    global _class
    remove_properties(sys, _class)
    _class = None
    for name, proxy in _proxies.items():
        if sys.__dict__.get(name) is proxy:
            replaced = proxy.outside is not proxy.of_jobs
            sys.__dict__[name] = proxy.outside if replaced else proxy.original
    _proxies.clear()


def restore() -> list[str]:
    """Restore proxies that were replaced in ``sys.__dict__``, and return their names."""
    if _class is not None and type(sys) is not _class:
        sys.__class__ = _class
    replaced = [name for name in _proxies if sys.__dict__.get(name) is not _proxies[name]]
    for name in replaced:
        sys.__dict__[name] = _proxies[name]
    return replaced


def flush_assigned() -> None:
    """Flush the streams that the current job has assigned: wrappers may buffer log text."""
    log = current.get()
    for name in ("stdout", "stderr"):
        stream = None if log is None else log.local_state.get(name)
        if stream is not None and stream is not _DELETED:
            with contextlib.suppress(Exception):  # a task's stream may raise anything
                stream.flush()


def flush_originals() -> None:
    """Flush the process's own streams."""
    for proxy in _proxies.values():
        if proxy.base is not None:
            with contextlib.suppress(OSError, ValueError):
                proxy.base.original.flush()


def job_stream(stream: Any) -> Any:
    """Return the replacement of one of the process's own streams, any other stream unchanged."""
    for proxy in _proxies.values():
        if proxy.base is not None and stream is proxy.original:
            return proxy.base
    return stream


def is_captured(stream: Any) -> bool:
    """Return True if a stream writes to the log of the current job, or else the worker's."""
    return isinstance(stream, _StreamProxy) and stream.stream() is stream.base
