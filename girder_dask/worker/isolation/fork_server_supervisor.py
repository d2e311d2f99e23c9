"""The fork server of a worker, kept running: the side of the worker.

A thread starts the :mod:`~girder_dask.worker.isolation.fork_server` when it is first wanted,
starts it again when it dies, and ends it with the worker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import Context
from typing import Any

from girder_dask.utils.background import Guard
from girder_dask.worker import gpus
from girder_dask.worker.isolation.fork_server import FORK_REQUEST, MAX_MESSAGE_BYTES, TASK_MODULES

__all__ = ["ForkServerProcess", "ForkServerSupervisor"]

logger = logging.getLogger(__name__)

# How long the server may take to end that was asked to.
_END_TIMEOUT_S = 2.0
# The pause before a server that died is started again, doubled each time up to the most, and how
# long one has to live for the first pause.
_MIN_RESTART_DELAY_S, _MAX_RESTART_DELAY_S, _STABLE_TIME_S = 0.5, 60.0, 60.0

# What is said while there is no server.
_MEANWHILE = "Meanwhile, tasks in processes of their own take longer to start."


class ForkServerSupervisor:
    """A fork server that is kept running. For any number of threads.

    Parameters
    ----------
    modules
        What the fork server imports besides what each task needs.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = list(modules)
        # A thread that runs a job may have a working directory of its own.
        self._path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - links stay
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._server: ForkServerProcess | None = None
        self._settled = threading.Event()  # a server is there, or none is to be waited for
        self._closed = threading.Event()

    @property
    def server(self) -> ForkServerProcess | None:
        """The server that can fork now, if there is one."""
        server = self._server
        if server is None or not server.is_ready or server.is_given_up:
            return None
        return server

    def begin(self) -> None:
        """Start the server, unless that was done."""
        with self._lock:
            if self._thread is not None or self._closed.is_set():
                return
            self._thread = threading.Thread(
                target=self._supervise, daemon=True, name="girder-dask-fork-server"
            )
            Context().run(self._thread.start)  # it is no part of the job that needs it first

    def wait(self, timeout: float) -> ForkServerProcess | None:
        """Return the server that can fork, after the first one had its time to begin."""
        self._settled.wait(timeout)
        return self.server

    def close(self) -> None:
        """End the server. The processes that it has forked are ended by their runs."""
        self._closed.set()
        self._settled.set()
        with self._lock:
            thread, server = self._thread, self._server
        if server is not None:
            server.ask_to_end()
        if thread is not None:
            thread.join(_END_TIMEOUT_S)
            if thread.is_alive() and server is not None:
                server.process.kill()
                thread.join(_END_TIMEOUT_S)

    def give_up(self, server: ForkServerProcess) -> None:
        """End a server that does not answer, which makes room for another."""
        with self._lock:
            if server.is_given_up or self._closed.is_set():
                return
            server.is_given_up = True
        logger.warning(
            "The fork server of this worker does not answer, and is started again. %s", _MEANWHILE
        )
        server.process.kill()

    def _supervise(self) -> None:
        """Keep a server running until the end of the worker."""
        pause, goes_on = _MIN_RESTART_DELAY_S, _has_pidfd()
        guard = Guard(logger, "Keeping the fork server of this worker")
        if not goes_on:
            logger.warning(
                "This system has no pidfd (Linux 5.3 has), so this worker has no fork server. "
                "Tasks in processes of their own take longer to start."
            )
        while goes_on and not self._closed.is_set():
            begun, known = time.monotonic(), len(self._modules)
            with guard:
                goes_on = self._serve_once()
            if len(self._modules) < known:  # without one of them it may do better
                continue
            self._settled.set()
            pause = _MIN_RESTART_DELAY_S if time.monotonic() - begun >= _STABLE_TIME_S else pause
            self._closed.wait(pause)
            pause = min(2 * pause, _MAX_RESTART_DELAY_S)
        self._settled.set()

    def _serve_once(self) -> bool:
        try:
            return self._serve()
        except OSError as e:
            logger.warning(
                "The fork server of this worker cannot be started: %s. %s", e, _MEANWHILE
            )
            return True

    def _serve(self) -> bool:
        """Start a server and wait for its end. Say whether there may be another."""
        with contextlib.closing(ForkServerProcess()) as server:
            with self._lock:
                self._server = server
            try:
                if self._closed.is_set():
                    return False
                report = server.import_all(self._modules, self._path)
                if report is not None and self._is_usable(report):
                    server.is_ready = True
                    self._settled.set()
                code = server.process.wait()
            finally:
                self._server = None
        if report is None:
            self._tell_early_end(code)
        elif server.is_ready and not (server.is_given_up or self._closed.is_set()):
            logger.warning(
                "The fork server of this worker has ended (exit code %d), and is started again. %s",
                code, _MEANWHILE,
            )  # fmt: skip
        return report is None or report["threads"] not in TASK_MODULES

    def _tell_early_end(self, code: int) -> None:
        if self._closed.is_set():
            return
        if not self._modules:
            logger.warning(
                "The fork server of this worker did not start (exit code %d). %s", code, _MEANWHILE
            )
            return
        logger.warning(
            "The fork server of this worker has ended (exit code %d) while it imported %s "
            "(girder.worker.preimport). None of them is imported ahead.",
            code, ", ".join(self._modules),
        )  # fmt: skip
        self._modules.clear()

    def _is_usable(self, report: Mapping[str, Any]) -> bool:
        """Say whether a server can fork, after what it has said of its imports."""
        if self._closed.is_set():
            return False
        for module, error in report["failed"]:
            logger.warning(
                "%s (girder.worker.preimport) cannot be imported ahead: %s", module, error
            )
        culprit = report["threads"]
        if culprit in self._modules:
            self._modules.remove(culprit)
            logger.warning(
                "%s (girder.worker.preimport) starts threads when it is imported, and a process "
                "with threads cannot be forked safely. It is not imported ahead. If they are those "
                "of a library for mathematics, OMP_NUM_THREADS=1 keeps it from starting them.",
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


class ForkServerProcess:
    """The process of a fork server."""

    def __init__(self) -> None:
        self.is_ready = False
        self.is_given_up = False
        # Sequenced packets keep the requests of several threads apart.
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", "-m", "girder_dask.worker.isolation.fork_server"]
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                env=gpus.environment(()),
                pass_fds=[theirs.fileno()],
                cwd="/",  # a directory that stays
                start_new_session=True,
            )

    def close(self) -> None:
        """End it, and wait for that."""
        self._channel.close()
        self.process.wait()

    def import_all(self, modules: Sequence[str], path: Sequence[str]) -> dict[str, Any] | None:
        """Have it import what it needs. Return its report, None if it ended before that."""
        try:
            self._channel.send(json.dumps({"modules": modules, "path": path}).encode())
            report: dict[str, Any] = json.loads(self._channel.recv(MAX_MESSAGE_BYTES) or b"null")
        except OSError:
            return None
        return report

    def ask(self, ends: tuple[int, int, int], output: int | None) -> None:
        """Ask for a subreaper. That it was not heard shows in the other end of the lifeline.

        Parameters
        ----------
        ends
            The descriptors of its lifeline, its control socket and its file.
        output
            Where it writes, None for where this process does.
        """
        streams = (1, 2) if output is None else (output, output)
        # The directory that a process would inherit which this thread had started.
        directory = os.open(".", os.O_PATH | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):
                socket.send_fds(self._channel, [FORK_REQUEST], [*ends, *streams, directory])
        finally:
            os.close(directory)

    def ask_to_end(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
