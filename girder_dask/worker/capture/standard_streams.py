"""``sys.stdin``, ``sys.stdout`` and ``sys.stderr``, for each job its own.

What a task assigns to one of them is kept with its job (see
:mod:`girder_dask.worker.job_log.overlay`): code
of other jobs, and of the worker, does not see it. Two things are needed for that. ``sys`` gets a
class with properties, for Python code that reads and assigns. ``print`` and other C code do not use
these, but what is in ``sys.__dict__``: there is a *front*, which looks up the stream of the
current job. Properties never return a front, so that what a task wraps around its stream does not
end up in a circle.

Known limits
------------
What is written to ``sys.__dict__`` directly, or by C code with ``PySys_SetObject``, holds for the
process; it is put back at the end of a run. An attribute of ``sys`` takes 30 to 60 ns to look up
where it took 11.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from pathlib import Path
from typing import Any, TextIO

from girder_dask.worker.capture.module_proxy import give_properties, take_properties
from girder_dask.worker.capture.streams import RoutingStream
from girder_dask.worker.interruption.thread_interrupt import due, meet
from girder_dask.worker.job_log.log import JobLog, current
from girder_dask.worker.job_log.print_frames import writing_code

__all__ = [
    "flush_assigned",
    "flush_originals",
    "install",
    "is_workers",
    "of_jobs",
    "put_back",
    "uninstall",
]

_NAMES = ("stdin", "stdout", "stderr")

#: How many assignments are remembered that a task may go back to.
_MOST_EARLIER = 16

#: Stands for a stream that a task has deleted.
_DELETED: Any = object()


class _Front:
    """Stands in ``sys.__dict__``. Passes everything to the stream of the current job.

    Parameters
    ----------
    base
        The stream of a job that has assigned none, of which there is none for ``stdin``.
    original
        What has been there before. It may be None, in a process without a console.
    """

    def __init__(self, name: str, base: RoutingStream | None, original: TextIO | None) -> None:
        self.name_in_sys = name
        self.base = base
        self.original = original
        #: What code outside of jobs has.
        self.outside: Any = original if base is None or original is None else base

    def write(self, text: str) -> int:
        """Write to the stream of the current job."""
        log = current.get()
        if log is not None:
            own = log.own
            if not own or self.name_in_sys not in own:
                count = log.write(text, self.name_in_sys)
                if due:
                    meet(text)
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
        stream = log.own.get(self.name_in_sys, self)
        if stream is _DELETED:
            raise RuntimeError(f"lost sys.{self.name_in_sys}")
        return self.of_jobs if stream is self else stream

    @property
    def of_jobs(self) -> Any:
        """The stream of jobs that have assigned none."""
        return self.outside if self.base is None else self.base

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream(), name)

    # -- what the properties of sys do -----------------------------------------------------

    def get(self, module: Any) -> Any:
        log = current.get()
        if log is None:
            value = module.__dict__[self.name_in_sys]
            return self.outside if value is self else value
        own = log.own
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
        earlier: list[Any] = log.own.setdefault((name, "earlier"), [])
        if value is self:
            # unittest.mock has found the front in sys.__dict__, and puts back what it has seen.
            if earlier:
                log.own[name] = earlier.pop()
            else:
                log.own.pop(name, None)
            return
        process = (self.base, self.original, self.outside, sys.__dict__.get(f"__{name}__"))
        if value is not None and any(value is each for each in process):
            log.own.pop(name, None)
            earlier.clear()
            return
        positions = [n for n, each in enumerate(earlier) if each is value]
        if positions:
            del earlier[positions[0] :]
        elif name in log.own:
            earlier.append(log.own[name])
            del earlier[:-_MOST_EARLIER]
        log.own[name] = value


writing_code.add(_Front.write.__code__)

_fronts: dict[str, _Front] = {}
_class: type[types.ModuleType] | None = None


def install() -> None:
    """Put the fronts and the properties in place."""
    global _class
    properties: dict[str, Any] = {}
    for name in _NAMES:
        original = getattr(sys, name)
        base = None
        if name != "stdin":
            base = RoutingStream(_nowhere() if original is None else original, name)
        front = _fronts[name] = _Front(name, base, original)
        properties[name] = property(front.get, front.set, front.delete)
        if base is not None:
            properties[f"__{name}__"] = property(front.get_original, _setter(f"__{name}__"))
        sys.__dict__[name] = front
    _class = give_properties(sys, properties)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w")


def _setter(name: str) -> Any:
    def set_in_process(module: Any, value: Any) -> None:
        module.__dict__[name] = value

    return set_in_process


def uninstall() -> None:
    """Put back what was there, unless somebody has replaced it since."""
    global _class
    take_properties(sys, _class)
    _class = None
    for name, front in _fronts.items():
        if sys.__dict__.get(name) is front:
            replaced = front.outside is not front.of_jobs
            sys.__dict__[name] = front.outside if replaced else front.original
    _fronts.clear()


def put_back() -> list[str]:
    """Put the fronts back where they were replaced in ``sys.__dict__``, and return their names."""
    if _class is not None and type(sys) is not _class:
        sys.__class__ = _class
    replaced = [name for name in _fronts if sys.__dict__.get(name) is not _fronts[name]]
    for name in replaced:
        sys.__dict__[name] = _fronts[name]
    return replaced


def flush_assigned() -> None:
    """Flush what the current job has assigned: a wrapper may keep text that belongs to the log."""
    log = current.get()
    for name in ("stdout", "stderr"):
        stream = None if log is None else log.own.get(name)
        if stream is not None and stream is not _DELETED:
            with contextlib.suppress(Exception):  # whatever a foreign stream does
                stream.flush()


def flush_originals() -> None:
    """Flush the process's own streams."""
    for front in _fronts.values():
        if front.base is not None:
            with contextlib.suppress(OSError, ValueError):
                front.base.original.flush()


def of_jobs(stream: Any) -> Any:
    """Return what stands in jobs for one of the process's own streams, and any other as it is."""
    for front in _fronts.values():
        if front.base is not None and stream is front.original:
            return front.base
    return stream


def is_workers(stream: Any) -> bool:
    """Return True if a stream leads to the log of the current job, or else to the worker's."""
    return isinstance(stream, _Front) and stream.stream() is stream.base
