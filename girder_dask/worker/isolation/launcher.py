"""The start of a task's process: a fork of the worker's fork server, or a new Python.

While there is no server (see :mod:`girder_dask.worker.isolation.fork_server_supervisor`), each task
gets a new Python process, which takes longer and is otherwise the same.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from girder_dask.worker import gpus
from girder_dask.worker.isolation import exchange_file
from girder_dask.worker.isolation.fork_server_supervisor import ForkServerSupervisor
from girder_dask.worker.isolation.process_spec import ProcessSpec
from girder_dask.worker.job_log.log import JobLog
from girder_dask.worker.propagation import subprocess_propagation

__all__ = ["LaunchedProcess", "SubreaperProcess", "launch"]

# Seconds that a task waits for the first server to start, and for a fork.
_SERVER_TIMEOUT_S, _FORK_TIMEOUT_S = 5.0, 10.0


class SubreaperProcess(Protocol):
    """The subreaper of a task's process, a child of this process or of the fork server."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def returncode(self) -> int | None:
        """The exit code, None until :meth:`wait` has returned."""

    def wait(self) -> int:
        """Wait for its end, after its last message or the end of the lifeline."""


@dataclass(frozen=True, slots=True)
class LaunchedProcess:
    """A started process of a task, and the channels to it."""

    subreaper: SubreaperProcess
    control: socket.socket
    lifeline: socket.socket
    file: BinaryIO


def launch(
    spec: ProcessSpec,
    supervisor: ForkServerSupervisor,
    closing: contextlib.ExitStack,
    *,
    log: JobLog,
    writer: Any,
    directory: Path,
) -> LaunchedProcess:
    """Start the process of a task.

    Parameters
    ----------
    spec
        What the process runs.
    supervisor
        The supervisor of the worker's fork server.
    closing
        The stack that closes the channels to the process.
    log
        The job's log, to which the process writes.
    writer
        An object whose ``returncode`` is None while a process may still write to the log.
    directory
        Where the :mod:`~girder_dask.worker.isolation.exchange_file` is created.
    """
    supervisor.start()
    server = supervisor.wait(_SERVER_TIMEOUT_S)
    environment = subprocess_propagation.with_run_id(log, gpus.environment(spec.gpus))
    if server is not None:
        with contextlib.ExitStack() as stack:
            spec_for_fork = replace(spec, environment=environment)
            with _ends(spec_for_fork, directory, stack) as ends, log.lend_pipe(writer) as output:
                server.request_fork(ends.theirs, output)
            forked = _await_fork(ends.lifeline)
            if forked is not None:
                closing.push(stack.pop_all())
                return LaunchedProcess(forked, ends.control, ends.lifeline, ends.file)
        # A late fork has no lifeline and ends, so the next process is the only one.
        supervisor.replace(server)
    with _ends(spec, directory, closing) as ends, log.lend_pipe(writer) as output:
        process = _start(ends, output, environment)
    return LaunchedProcess(process, ends.control, ends.lifeline, ends.file)


@dataclass(frozen=True, slots=True)
class _Ends:
    """The channels to a task's process. ``theirs`` are the descriptors for that process."""

    control: socket.socket
    lifeline: socket.socket
    file: BinaryIO
    theirs: tuple[int, int, int]


@contextlib.contextmanager
def _ends(spec: ProcessSpec, directory: Path, closing: contextlib.ExitStack) -> Iterator[_Ends]:
    """Create the channels to a process. Close its ends here when the block is left."""
    file = closing.enter_context(tempfile.TemporaryFile(dir=directory))  # noqa: SIM115 - it stays open
    exchange_file.write(file.fileno(), spec)
    # Sequenced packets keep messages apart, even those of the task's forks.
    control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    closing.callback(control.close)
    with their_control:
        lifeline, their_lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        closing.callback(lifeline.close)
        with their_lifeline:
            theirs = their_lifeline.fileno(), their_control.fileno(), file.fileno()
            yield _Ends(control, lifeline, file, theirs)


def _start(
    ends: _Ends, output: int | None, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a subreaper in a new Python process."""
    return subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "girder_dask.worker.isolation.subreaper"),
            *(str(number) for number in (*ends.theirs, os.getpid())),
        ],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        pass_fds=ends.theirs,
        start_new_session=True,
    )


class _ForkedSubreaper:
    """A subreaper that is a child of the fork server, which reaps it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        self.returncode = 0
        return self.returncode


def _await_fork(lifeline: socket.socket) -> _ForkedSubreaper | None:
    """Wait for the process id that a forked subreaper sends. Return None if none comes."""
    lifeline.settimeout(_FORK_TIMEOUT_S)
    try:
        words = lifeline.recv(100).decode().split()
    except OSError:
        return None
    finally:
        lifeline.settimeout(None)
    return _ForkedSubreaper(int(words[1])) if words[:1] == ["subreaper"] else None
