"""The settings of a process and its threads that a task may change for other jobs."""

from __future__ import annotations

import asyncio
import builtins
import gc
import locale
import multiprocessing
import operator
import os
import resource
import signal
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from girder_dask.worker.process_globals.restoration import SharedSetting

__all__ = ["directory_settings", "process_settings", "setting_functions", "thread_settings"]

_ABSENT: Any = object()
_LIMITS = tuple(
    getattr(resource, name)
    for name in (
        "RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE",
        "RLIMIT_MEMLOCK", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_STACK",
    )
    if hasattr(resource, name)
)  # fmt: skip
_GC = "the settings of gc"
_ZONE = "the time zone of time.localtime()"
_LIMITED = "the resource limits"
_TIMER = "a timer of signal.alarm() or setitimer()"
_METHOD = "the start method of multiprocessing"
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
#: Hooks and defaults that are attributes of modules: name, module, attribute.
_ATTRIBUTES = (
    ("sys.excepthook", "sys", "excepthook"),
    ("sys.unraisablehook", "sys", "unraisablehook"),
    ("sys.displayhook", "sys", "displayhook"),
    ("threading.excepthook", "threading", "excepthook"),
    ("os.environ itself", "os", "environ"),
    ("the directory of tempfile", "tempfile", "tempdir"),
    ("the certificate checks of ssl", "ssl", "_create_default_https_context"),
    ("threading.settrace()", "threading", "_trace_hook"),
    ("threading.setprofile()", "threading", "_profile_hook"),
)


def _attribute(name: str, module: str, attribute: str, *, is_logged: bool = True) -> SharedSetting:
    def read() -> Any:
        return getattr(sys.modules.get(module), attribute, _ABSENT)

    def restore(value: Any) -> None:
        if value is not _ABSENT:  # otherwise the module was imported since
            setattr(sys.modules[module], attribute, value)

    return SharedSetting(name, read, restore, by_value=False, is_logged=is_logged)


def process_settings() -> list[SharedSetting]:
    """Return the settings of the process."""
    return [
        *(_attribute(*each) for each in _ATTRIBUTES),
        # The first call of urlopen() creates it: nothing to log.
        _attribute("the opener of urllib", "urllib.request", "_opener", is_logged=False),
        SharedSetting("builtins", _builtins, _set_builtins),
        SharedSetting("gc.callbacks", lambda: tuple(gc.callbacks), _fill(gc, "callbacks")),
        SharedSetting("sys.meta_path", lambda: tuple(sys.meta_path), _fill(sys, "meta_path")),
        SharedSetting("sys.path_hooks", lambda: tuple(sys.path_hooks), _fill(sys, "path_hooks")),
        SharedSetting("sys.path", lambda: tuple(sys.path), _fill(sys, "path")),
        SharedSetting("sys.argv", lambda: tuple(sys.argv), _fill(sys, "argv")),
        SharedSetting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        SharedSetting("the switch interval", sys.getswitchinterval, sys.setswitchinterval),
        SharedSetting(
            "the most digits of int()", sys.get_int_max_str_digits, sys.set_int_max_str_digits
        ),
        SharedSetting(_GC, _gc, _set_gc),
        SharedSetting(
            "the default timeout of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout
        ),
        SharedSetting("the locale", _locale, _set_locale, is_read_when_set=True),
        SharedSetting(_ZONE, _zone, lambda _: time.tzset()),
        SharedSetting(_LIMITED, _limits, _set_limits, is_read_when_set=True),
        SharedSetting(_TIMER, _timers, _stop_timers, is_read_when_set=True),
        SharedSetting("the state of tracemalloc", tracemalloc.is_tracing, _set_tracing),
        # The first use of multiprocessing sets it: nothing to log.
        SharedSetting(_METHOD, _start_method, _set_start_method, is_logged=False),
    ]


def directory_settings() -> list[SharedSetting]:
    """Return the settings that threads share on systems where they cannot have their own."""
    there = os.open(".", os.O_PATH | os.O_CLOEXEC)
    return [
        SharedSetting("the working directory", _directory, lambda _: os.fchdir(there)),
        SharedSetting("the umask", _umask, os.umask),
    ]


def thread_settings() -> list[SharedSetting]:
    """Return the settings of the calling thread."""
    return [
        SharedSetting("sys.settrace()", sys.gettrace, sys.settrace, by_value=False),
        SharedSetting("sys.setprofile()", sys.getprofile, sys.setprofile, by_value=False),
        SharedSetting("the CPU affinity", lambda: os.sched_getaffinity(0), _set_affinity),
        SharedSetting("the niceness", lambda: os.getpriority(os.PRIO_PROCESS, 0), _set_niceness),
        SharedSetting("the blocked signals", _blocked, _block),
        SharedSetting(
            "the event loop", _loop, asyncio.set_event_loop, by_value=False, is_logged=False
        ),
        SharedSetting("the thread's name", _name, _set_name, is_logged=False),
    ]


def setting_functions() -> list[tuple[Any, str, str]]:
    """Return the functions that change settings of the process.

    Each item is a module, the name of a function in it, and the name of the setting.
    """
    return [
        (sys, "setrecursionlimit", "the recursion limit"),
        (sys, "setswitchinterval", "the switch interval"),
        (sys, "set_int_max_str_digits", "the most digits of int()"),
        *((gc, name, _GC) for name in ("enable", "disable", "set_threshold", "set_debug")),
        (socket, "setdefaulttimeout", "the default timeout of sockets"),
        (locale, "setlocale", "the locale"),
        (time, "tzset", _ZONE),
        (resource, "setrlimit", _LIMITED),
        (resource, "prlimit", _LIMITED),
        (signal, "alarm", _TIMER),
        (signal, "setitimer", _TIMER),
        (multiprocessing, "set_start_method", _METHOD),
    ]


def _fill(module: Any, name: str) -> Callable[[Any], None]:
    def restore(value: Any) -> None:
        values = getattr(module, name, None)
        if type(values) is list:
            values[:] = value
        else:
            setattr(module, name, list(value))

    return restore


#: The last value of an interactive session, which doctest sets too.
_LAST_VALUE = "_"


class _Names:
    """The names of a module with their objects. Equal if all objects are identical."""

    def __init__(self, there: Mapping[str, Any]) -> None:
        self.values = dict(there)
        self.values.pop(_LAST_VALUE, None)

    def __eq__(self, other: object) -> bool:
        known = other.values if isinstance(other, _Names) else {}
        return self.values.keys() == known.keys() and all(
            known[name] is value for name, value in self.values.items()
        )

    __hash__ = None  # type: ignore[assignment]


_builtin_names = _Names({})


def _builtins() -> Any:
    """Return all builtins, as the same object as before if none has changed."""
    global _builtin_names
    now, known = vars(builtins), _builtin_names.values
    if len(now) != len(known) or any(map(operator.is_not, now.values(), known.values())):
        _builtin_names = _Names(now)
    return _builtin_names


def _set_builtins(names: _Names) -> None:
    there = vars(builtins)
    there.update(names.values)
    for name in there.keys() - names.values.keys() - {_LAST_VALUE}:
        del there[name]


def _gc() -> Any:
    return gc.isenabled(), gc.get_threshold(), gc.get_debug()


def _set_gc(value: Any) -> None:
    enabled, threshold, flags = value
    gc.set_debug(flags)
    gc.set_threshold(*threshold)
    (gc.enable if enabled else gc.disable)()


# The function that _tracking() has not replaced.
_setlocale = locale.setlocale


def _locale() -> str:
    return _setlocale(locale.LC_ALL)


def _set_locale(value: str) -> None:
    try:
        _setlocale(locale.LC_ALL, value)
    except locale.Error as e:
        raise ValueError(str(e)) from e


def _zone() -> Any:
    return time.tzname, time.timezone


def _limits() -> Any:
    return [resource.getrlimit(number) for number in _LIMITS]


def _set_limits(value: Any) -> None:
    for number, wanted, now in zip(_LIMITS, value, _limits(), strict=True):
        if wanted != now:
            resource.setrlimit(number, wanted)


def _timers() -> Any:
    """Return which timers run. Their remaining times change constantly."""
    return [any(signal.getitimer(which)) for which in _TIMERS]


def _stop_timers(value: Any) -> None:
    for which, was_set in zip(_TIMERS, value, strict=True):
        if not was_set:
            signal.setitimer(which, 0)


def _set_tracing(value: bool) -> None:
    (tracemalloc.start if value else tracemalloc.stop)()


def _start_method() -> Any:
    return multiprocessing.get_start_method(allow_none=True)


def _set_start_method(value: str | None) -> None:
    multiprocessing.set_start_method(value, force=True)


def _directory() -> Any:
    status = os.stat(".")  # noqa: PTH116
    return status.st_dev, status.st_ino


def _umask() -> int:
    # os.umask() returns it only by setting it, which other threads would see.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o22


def _set_affinity(value: Any) -> None:
    os.sched_setaffinity(0, value)


def _set_niceness(value: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, value)


def _blocked() -> Any:
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def _block(value: Any) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, value)


def _loop() -> Any:
    """Return the event loop that ``asyncio.set_event_loop`` has set in this thread."""
    policy = getattr(asyncio.events, "_event_loop_policy", None)
    return getattr(getattr(policy, "_local", None), "_loop", None)


def _name() -> str:
    return threading.current_thread().name


def _set_name(value: str) -> None:
    threading.current_thread().name = value
