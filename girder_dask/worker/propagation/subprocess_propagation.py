"""Propagation of a job into subprocesses: their output goes to its log, they get its run's id."""

from __future__ import annotations

import os
import subprocess
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from girder_dask.utils.monkey_patches import MonkeyPatches
from girder_dask.worker.capture import standard_streams
from girder_dask.worker.capture.routing_streams import RoutingBuffer, RoutingStream
from girder_dask.worker.job_log.log import JobLog, current

__all__ = [
    "RUN_VARIABLE",
    "install",
    "running_subprocesses",
    "set_run_id",
    "uninstall",
    "with_run_id",
]

#: The environment variable that holds the id of the run to which a process belongs.
RUN_VARIABLE = "GIRDER_DASK_RUN"

#: The positions of these parameters among the arguments of ``Popen``.
_STREAM_POSITIONS = {"stdout": 4, "stderr": 5}
_ENV_POSITION = 10

_patches = MonkeyPatches()
_is_active = False
_run_ids: weakref.WeakKeyDictionary[JobLog, str] = weakref.WeakKeyDictionary()


def install() -> None:
    """Start to propagate jobs into subprocesses."""
    global _is_active
    _is_active = True
    _patches.apply(subprocess.Popen, "__init__", _popen_init)
    _patches.apply(os, "system", _system)


def uninstall() -> None:
    """Undo :func:`install`."""
    global _is_active
    _is_active = False
    _patches.undo()


def set_run_id(log: JobLog, run: str) -> None:
    """Put the id of a run into the environment of each subprocess that it starts from now on."""
    _run_ids[log] = run


def with_run_id(log: JobLog, environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with the id of a job's run, if it has one."""
    run = _run_ids.get(log)
    return dict(environment) if run is None else _with_run_id(run, environment)


def running_subprocesses(log: JobLog) -> list[Any]:
    """Return the ``Popen`` of each subprocess that a job has started and not yet waited for."""
    # Some are about to start, and some represent a process with a subreaper.
    return [process for process in log.children() if getattr(process, "pid", None)]


def _popen_init(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        log = current.get() if _is_active else None
        if log is None:
            original(self, *args, **kwargs)
            return
        run = _run_ids.get(log)
        if run is not None:
            args = _add_run_id(run, args, kwargs)
        with log.lend_pipe(self) as fd:
            if fd is not None:
                args = _redirect(fd, args, kwargs)
            original(self, *args, **kwargs)

    return init


def _add_run_id(run: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Put the id of a run into a copy of the environment of a child."""
    if len(args) > _ENV_POSITION:
        env = _with_run_id(run, args[_ENV_POSITION])
        return (*args[:_ENV_POSITION], env, *args[_ENV_POSITION + 1 :])
    kwargs["env"] = _with_run_id(run, kwargs.get("env"))
    return args


def _with_run_id(run: str, env: Mapping[Any, Any] | None) -> dict[Any, Any]:
    if env is None:
        # Another thread may delete a variable meanwhile.
        env = {key: value for key in os.environ if (value := os.environ.get(key)) is not None}
    return {**env, RUN_VARIABLE: run}


def _redirect(fd: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Replace streams of the worker by ``fd`` in the arguments of ``Popen``."""
    positional = list(args)
    for name, position in _STREAM_POSITIONS.items():
        if position < len(positional):
            if _is_workers(positional[position]):
                positional[position] = fd
        elif _is_workers(kwargs.get(name)):
            kwargs[name] = fd
    return tuple(positional)


def _is_workers(stream: Any) -> bool:
    if stream is None or isinstance(stream, (RoutingStream, RoutingBuffer)):
        return True
    if standard_streams.is_captured(stream):
        return True
    return isinstance(stream, int) and stream in (1, 2)


def _system(original: Callable[[Any], int]) -> Callable[[Any], int]:
    def system(command: Any) -> int:
        if not _is_active or current.get() is None:
            return original(command)
        code = subprocess.call(command, shell=True, close_fds=False)  # noqa: S602 - it is os.system
        return code << 8 if code >= 0 else -code

    return system
