"""The process between a worker and a task that has a process of its own.

It forks the task's process, and ends it with everything that it left behind, whether the task ends,
crashes or is killed, or the worker dies. On Linux it adopts processes whose parents have ended, so
none of them escapes. It runs no code of the task and stays small.

Forked by a :mod:`~girder_dask.worker.isolation.fork_server`, or run by
:mod:`girder_dask.worker.isolation.launcher` as ``python -m girder_dask.worker.isolation.subreaper
LIFELINE CONTROL FILE PARENT``: three descriptors, and the worker's process id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

from girder_dask.utils.processes import descendants, send_signal

__all__ = ["announce", "fork", "main", "watch"]

# From Linux's sys/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

#: Seconds that the leftover processes of a task have to end by themselves.
_LEFTOVER_GRACE_S = 0.5


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main() -> None:
    """Fork and watch the process of a task for the worker that has started this process."""
    lifeline, control, file, parent = map(int, sys.argv[1:5])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    task = fork()
    if task == 0:
        os.close(lifeline)
        from girder_dask.worker.isolation import child

        child.main(control, file)
        child.exit_process()
    os.close(control)
    os.close(file)
    watch(lifeline, task, parent=parent)


def announce(lifeline: int) -> None:
    """Send the id of this process to the worker, which did not start it itself."""
    with socket.socket(fileno=os.dup(lifeline)) as channel, contextlib.suppress(OSError):
        channel.send(f"subreaper {os.getpid()}".encode())


def fork() -> int:
    """Fork the process of a task, which ends with this one. Return what :func:`os.fork` does."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    me = os.getpid()
    task = os.fork()
    if task == 0:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setpgid(0, 0)
        if os.getppid() != me:  # the subreaper died before
            os._exit(1)
    return task


def watch(
    lifeline: int, task: int, *, parent: int | None = None, worker: int | None = None
) -> NoReturn:
    """Watch the process of a task until all its processes have ended, then exit.

    Parameters
    ----------
    lifeline
        The descriptor of a socket whose other end the worker has.
    task
        The process id of the task's process.
    parent
        The process id of the worker, if that is the parent.
    worker
        A pidfd of the worker, if it is not the parent.
    """
    _Subreaper(socket.socket(fileno=lifeline), task, parent, worker).watch()
    os._exit(0)  # exit handlers belong to the task


class _Subreaper:
    """The watch over the process of a task, by signals and by messages of the worker."""

    def __init__(
        self, lifeline: socket.socket, task: int, parent: int | None, worker: int | None
    ) -> None:
        self._lifeline = lifeline
        self._task = task
        self._parent = parent
        self._worker = worker
        self._status: int | None = None
        self._must_end = False
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_term(self, *_: object) -> None:
        self._must_end = True

    def watch(self) -> None:
        """Watch the task until its end."""
        self._send(f"task {self._task}")
        self._reap()
        while self._status is None:
            self._wait(None)
            if self._must_end or self._parent not in (None, os.getppid()):
                self._end_all()
                return
            self._reap()
        left = self._end_leftovers()
        for fd in (1, 2):  # so that the job's pipe ends before this does
            with contextlib.suppress(OSError):
                os.close(fd)
        self._send(f"status {self._status} {left}")

    def _send(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the worker is gone
            self._lifeline.send(text.encode())

    def _wait(self, timeout_s: float | None) -> None:
        """Wait for a signal or a message, and handle it."""
        lifeline = self._lifeline.fileno()
        worker = [] if self._worker is None else [self._worker]
        ready, _, _ = select.select([self._wake, lifeline, *worker], [], [], timeout_s)
        if self._worker in ready:
            self._must_end = True
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if lifeline in ready:
            self._on_message()

    def _on_message(self) -> None:
        try:
            command = self._lifeline.recv(100)
        except OSError:
            command = b""
        if command == b"term":
            for pid in descendants(os.getpid()):
                send_signal(pid, signal.SIGTERM)
        elif command == b"kill":
            for pid in descendants(os.getpid()):
                send_signal(pid, signal.SIGKILL)
        else:  # the worker is gone
            self._must_end = True

    def _reap(self) -> bool:
        """Reap children that have ended. Return True if others remain.

        Without children there are no descendants either, since orphans become children.
        """
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._task:
                self._status = status

    def _end_leftovers(self) -> int:
        """End the leftover processes of the task, and return how many had to be killed."""
        deadline = time.monotonic() + _LEFTOVER_GRACE_S
        left: list[int] = []
        while self._reap():
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self._must_end:
                left = descendants(os.getpid())
                break
            self._wait(min(remaining, 0.05))
        self._end_all()
        return len(left)

    def _end_all(self) -> None:
        if not self._reap():
            return
        with contextlib.suppress(OSError):  # where there is no /proc
            os.killpg(self._task, signal.SIGKILL)
        while True:
            for pid in descendants(os.getpid()):
                send_signal(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)  # its children become ours
            except ChildProcessError:
                return


if __name__ == "__main__":
    main()
