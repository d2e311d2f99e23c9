"""The thread that keeps the fork server of a worker running.

It starts the :mod:`~girder_dask.worker.isolation.fork_server` when it is first needed, restarts it
when it dies, and ends it with the worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import Context
from typing import Any

from girder_dask.utils.background import Guard
from girder_dask.utils.backoff import Backoff
from girder_dask.worker.isolation.fork_server import TASK_MODULES
from girder_dask.worker.isolation.fork_server_process import ForkServerProcess

__all__ = ["ForkServerSupervisor"]

logger = logging.getLogger(__name__)

# Seconds that a server may take to end.
_END_TIMEOUT_S = 2.0
# The delays before servers that died are restarted, and how long one must live to reset them.
_RESTART_BACKOFF = Backoff(0.5, 60.0)
_STABLE_TIME_S = 60.0

# The consequence of a missing server, for log messages.
_MEANWHILE = "Meanwhile, tasks in processes of their own take longer to start."


class ForkServerSupervisor:
    """Supervisor that restarts the fork server when it ends. Any thread may use it.

    Parameters
    ----------
    modules
        Modules that the fork server imports in addition to those of every task.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = list(modules)
        # A thread that runs a job may have a working directory of its own.
        self._path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - links stay
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._server: ForkServerProcess | None = None
        self._is_settled = threading.Event()  # a server is ready, or none is expected soon
        self._is_closed = threading.Event()

    @property
    def server(self) -> ForkServerProcess | None:
        """The server if it can fork now, otherwise None."""
        server = self._server
        if server is None or not server.is_ready or server.is_replaced:
            return None
        return server

    def start(self) -> None:
        """Start the thread, unless it has been started."""
        with self._lock:
            if self._thread is not None or self._is_closed.is_set():
                return
            self._thread = threading.Thread(
                target=self._supervise, daemon=True, name="girder-dask-fork-server"
            )
            Context().run(self._thread.start)  # outside of the context of any job

    def wait(self, timeout_s: float) -> ForkServerProcess | None:
        """Wait for the first server for a time, and return it if it can fork."""
        self._is_settled.wait(timeout_s)
        return self.server

    def close(self) -> None:
        """End the server. The processes that it has forked are ended by their runs."""
        self._is_closed.set()
        self._is_settled.set()
        with self._lock:
            thread, server = self._thread, self._server
        if server is not None:
            server.request_end()
        if thread is not None:
            thread.join(_END_TIMEOUT_S)
            if thread.is_alive() and server is not None:
                server.process.kill()
                thread.join(_END_TIMEOUT_S)

    def replace(self, server: ForkServerProcess) -> None:
        """Kill a server that does not answer, so that another one is started."""
        with self._lock:
            if server.is_replaced or self._is_closed.is_set():
                return
            server.is_replaced = True
        logger.warning(
            "The fork server of this worker does not answer and is restarted. %s", _MEANWHILE
        )
        server.process.kill()

    def _supervise(self) -> None:
        """Keep a server running until the end of the worker."""
        early_ends, must_go_on = 0, _has_pidfd()
        guard = Guard(logger, "Keeping the fork server of this worker")
        if not must_go_on:
            logger.warning(
                "This system has no pidfd (Linux 5.3 has), so this worker has no fork server. "
                "Tasks in processes of their own take longer to start."
            )
        while must_go_on and not self._is_closed.is_set():
            started, known = time.monotonic(), len(self._modules)
            with guard:
                must_go_on = self._serve_once()
            if len(self._modules) < known:  # the next may start without the module that failed
                continue
            self._is_settled.set()
            early_ends = 0 if time.monotonic() - started >= _STABLE_TIME_S else early_ends + 1
            self._is_closed.wait(_RESTART_BACKOFF.delay_s(early_ends))
        self._is_settled.set()

    def _serve_once(self) -> bool:
        try:
            return self._serve()
        except OSError as e:
            logger.warning(
                "The fork server of this worker cannot be started: %s. %s", e, _MEANWHILE
            )
            return True

    def _serve(self) -> bool:
        """Start a server and wait for its end. Return False if no other may be started."""
        with contextlib.closing(ForkServerProcess()) as server:
            with self._lock:
                self._server = server
            try:
                if self._is_closed.is_set():
                    return False
                report = server.import_all(self._modules, self._path)
                if report is not None and self._check_report(report):
                    server.is_ready = True
                    self._is_settled.set()
                code = server.process.wait()
            finally:
                self._server = None
        if report is None:
            self._log_early_end(code)
        elif server.is_ready and not (server.is_replaced or self._is_closed.is_set()):
            logger.warning(
                "The fork server of this worker has ended (exit code %d) and is restarted. %s",
                code, _MEANWHILE,
            )  # fmt: skip
        return report is None or report["threads"] not in TASK_MODULES

    def _log_early_end(self, code: int) -> None:
        if self._is_closed.is_set():
            return
        if not self._modules:
            logger.warning(
                "The fork server of this worker did not start (exit code %d). %s", code, _MEANWHILE
            )
            return
        logger.warning(
            "The fork server of this worker has ended (exit code %d) while it imported %s "
            "(girder.worker.preimport). None of them is imported in advance.",
            code, ", ".join(self._modules),
        )  # fmt: skip
        self._modules.clear()

    def _check_report(self, report: Mapping[str, Any]) -> bool:
        """Return True if the report of a server says that it can fork. Log failed imports."""
        if self._is_closed.is_set():
            return False
        for module, error in report["failed"]:
            logger.warning(
                "%s (girder.worker.preimport) cannot be imported in advance: %s", module, error
            )
        culprit = report["threads"]
        if culprit in self._modules:
            self._modules.remove(culprit)
            logger.warning(
                "%s (girder.worker.preimport) starts threads when it is imported, and a process "
                "with threads cannot be forked safely. It is not imported in advance. If a "
                "numerical library starts them, OMP_NUM_THREADS=1 prevents that.",
                culprit,
            )
        elif culprit is not None:
            logger.warning(
                "The fork server of this worker has threads after the import of %s, so it is not "
                "used. Tasks in processes of their own take longer to start.",
                culprit,
            )
        return culprit is None


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True
