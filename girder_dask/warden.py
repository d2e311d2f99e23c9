"""The process between a worker and a task that has a process of its own.

It forks the task's process, and sees to its end and to that of everything which it left
behind, whatever happens: the task ends, crashes or is killed, or the worker dies. On
Linux it adopts processes whose parents are gone, so none of them escapes. It runs no code of the
task and stays small.

Run by :mod:`girder_dask.isolation` as ``python -m girder_dask.warden LIFELINE CONTROL FILE
PARENT``: three descriptors, and the process id of the worker.
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

from girder_dask.descendants import descendants, send_signal

__all__ = ["main"]

# From Linux's sys/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

#: Seconds that processes which a task left behind have to end by themselves.
_PATIENCE = 0.5


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main() -> None:
    """Fork the task's process and watch over it until nothing of it is left."""
    lifeline_fd, control, file, parent = map(int, sys.argv[1:5])
    lifeline = socket.socket(fileno=lifeline_fd)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    me = os.getpid()
    task = os.fork()
    if task == 0:
        lifeline.close()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setpgid(0, 0)
        if os.getppid() != me:  # it died before
            os._exit(1)
        from girder_dask import child

        child.main(control, file)
        return
    os.close(control)
    os.close(file)
    _Warden(lifeline, task, parent).watch()


class _Warden:
    def __init__(self, lifeline: socket.socket, task: int, parent: int) -> None:
        self._lifeline = lifeline
        self._task = task
        self._parent = parent
        self._status: int | None = None
        self._doomed = False
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._doom)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _doom(self, *_: object) -> None:
        self._doomed = True

    def watch(self) -> None:
        """Watch over the task, and end with it."""
        self._tell(f"task {self._task}")
        self._reap()
        while self._status is None:
            self._wait(None)
            if self._doomed or os.getppid() != self._parent:
                self._end_all()
                return
            self._reap()
        left = self._end_leftovers()
        self._tell(f"status {self._status} {left}")

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the worker is gone
            self._lifeline.send(text.encode())

    def _wait(self, timeout: float | None) -> None:
        """Wait for a signal or a message, and do what the message says."""
        lifeline = self._lifeline.fileno()
        ready, _, _ = select.select([self._wake, lifeline], [], [], timeout)
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if lifeline in ready:
            self._obey()

    def _obey(self) -> None:
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
            self._doomed = True

    def _reap(self) -> None:
        """Take note of processes that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._task:
                self._status = status

    def _end_leftovers(self) -> int:
        """End what the task left behind, and return how many processes had to be ended."""
        deadline = time.monotonic() + _PATIENCE
        while (left := descendants(os.getpid())) and not self._doomed:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            self._wait(min(remaining, 0.05))
            self._reap()
        self._end_all()
        return len(left)

    def _end_all(self) -> None:
        with contextlib.suppress(OSError):  # where there is no /proc
            os.killpg(self._task, signal.SIGKILL)
        while True:
            for pid in descendants(os.getpid()):
                send_signal(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)  # whose children become ours
            except ChildProcessError:
                return


if __name__ == "__main__":
    main()
