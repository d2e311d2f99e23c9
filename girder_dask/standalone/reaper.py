"""The reaper: a small process that stops a stack whose launcher was killed.

The launcher holds the other end of the reaper's standard input. It writes ``+PID`` for each
process that it starts and ``-PID`` for each that ended. When the pipe closes, the reaper stops the
processes that are still registered, newest first. After an orderly stop there are none.

The kernel's parent-death signal is not used: it is sent when the *thread* that started a child
ends, exists on Linux alone, and does not order the parts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from girder_dask.standalone import marked_processes
from girder_dask.utils import background

__all__ = ["Reaper"]

logger = logging.getLogger(__name__)


class Reaper:
    """The launcher's side: starts the reaper and registers processes with it.

    Parameters
    ----------
    directory
        The directory of the stack.
    lock
        A file descriptor that the reaper keeps open, so that the directory stays locked until
        everything has stopped.
    log
        The log file of the reaper. Only its owner can read it.
    """

    def __init__(self, directory: str, lock: int, log: Path) -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                # Not -m: the package imports this module, of which -m would make another.
                [sys.executable, "-c", f"from {__name__} import main; main()", directory],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
                pass_fds=(lock,),
            )
        finally:
            os.close(output)

    def watch(self, pid: int) -> None:
        """Stop ``pid`` and its process group if the launcher dies."""
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """Unregister ``pid``, which has ended. Another process may get its number."""
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """End the reaper."""
        assert self._process.stdin is not None  # noqa: S101 - it was asked for above
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was asked for above
        # A stack works and stops in order without its reaper, too.
        with contextlib.suppress(OSError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def main() -> None:
    """Read registrations until standard input closes, then stop what is registered."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: dict[int, psutil.Process] = {}
    guard = background.Guard(logger, "The reaper of the stack")
    for line in sys.stdin:
        with guard:
            _apply_line(line, watched)
    for pid, process in reversed(watched.items()):
        with guard:
            marked_processes.end([process], grace=10)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    if watched:
        marked_processes.end(marked_processes.marked(sys.argv[1]), grace=2)


def _apply_line(line: str, watched: dict[int, psutil.Process]) -> None:
    pid = int(line[1:])
    if line.startswith("+"):
        with contextlib.suppress(psutil.NoSuchProcess):
            watched[pid] = psutil.Process(pid)
    else:
        watched.pop(pid, None)
