"""The launcher: runs a stack for a person at a terminal or for a service manager."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from girder_dask.standalone.report import Reporter, reporter_for
from girder_dask.standalone.stack import Stack
from girder_dask.standalone.supervisor import Supervisor
from girder_dask.utils.background import Guard

__all__ = ["run_standalone", "stopping_on_signals", "watch"]

logger = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WATCH_INTERVAL_S = 0.5
_SECOND_CTRL_C_AFTER_S = 1.0


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Have SIGTERM and a closed terminal raise KeyboardInterrupt, as Ctrl-C does.

    Further signals are ignored, since a closing terminal and some service managers send several.
    But a second Ctrl-C, a second or more after the first signal, ends the orderly stop.
    """
    first: float | None = None

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
        elif number != signal.SIGINT or now - first < _SECOND_CTRL_C_AFTER_S:
            return
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(stack: Stack, stopped: threading.Event | None = None) -> None:
    """Restart each part that ends, until ``stopped`` is set or KeyboardInterrupt is raised."""
    stopped = stopped or threading.Event()
    supervisor = Supervisor(stack.parts, stack.reporter, start=stack.start_again, clear=stack.clear)
    guard, is_saved = Guard(logger, "The supervision of the stack"), True
    while not stopped.wait(max(_WATCH_INTERVAL_S, guard.delay_s)):
        with guard:
            is_saved &= not supervisor.poll()
            if not is_saved:
                stack.save()
                is_saved = True


def run_standalone(directory: Path, **options: Any) -> int:
    """Start a stack, print its addresses, and stop it on a signal. Returns the exit code.

    The options are those of :class:`Stack`.
    """
    reporter = reporter_for(sys.stdout)
    with stopping_on_signals(), Stack(directory, reporter=reporter, **options) as stack:
        _show(stack, reporter)
        with contextlib.suppress(KeyboardInterrupt):
            watch(stack)
    return 0


def _show(stack: Stack, reporter: Reporter) -> None:
    rows = {
        "Girder": stack.girder,
        "REST API": stack.api,
        "Login": f"{stack.login}  (password: see {stack.stack_file})",
        "Scheduler": stack.scheduler,
        "Dashboard": stack.dashboard,
        "Database": _without_password(stack.mongo),
        "Redis": _without_password(stack.redis),
        "Logs": str(stack.directory / "logs"),
        "Details": str(stack.stack_file),
    }
    if stack.tls_files is not None:
        rows["TLS"] = f"clients need {stack.tls_files['cert']}, its .key and ca.pem beside it"
    reporter.note("")
    for name, value in rows.items():
        reporter.note(f"{name:<10} {value}")
    if not stack.tls and stack.host not in {"127.0.0.1", "::1", "localhost"}:
        reporter.note(
            f"\nThe scheduler listens on {stack.host} without authentication: anyone who can "
            "connect to it can run code here."
        )
    reporter.note("\nCtrl-C stops everything. The data stays.")


def _without_password(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"
