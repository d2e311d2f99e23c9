"""The fork server of a worker: a process with imported modules that forks the processes of tasks.

A fork has its imports already, so a task with a process of its own starts in some milliseconds.
The server forks the :mod:`~girder_dask.worker.isolation.subreaper`, which exchanges the same
messages with the worker as one in a new process. Each fork runs one task, and one fork is kept
ready. The server runs no code of tasks except the imports that the operator names, opens no call
and holds no data of any job.

Run by :mod:`girder_dask.worker.isolation.fork_server_supervisor` as ``python -m
girder_dask.worker.isolation.fork_server CHANNEL WORKER``: a descriptor and a process id. The
channel carries the list of imports once, then the descriptors of each subreaper. The server has
one thread, because a lock that another thread holds stays held in a fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from girder_dask.worker.isolation import child, subreaper
from girder_dask.worker.job_log.c_stdio import flush_c_streams

__all__ = ["DESCRIPTOR_COUNT", "FORK_REQUEST", "MAX_MESSAGE_BYTES", "TASK_MODULES", "main"]

#: The message that asks for a subreaper, and how many descriptors come with it: its lifeline, the
#: control socket, the file of the call, its streams, its error stream, and its directory.
FORK_REQUEST = b"fork"
DESCRIPTOR_COUNT = 6

#: Most bytes of a message.
MAX_MESSAGE_BYTES = 128 * 1024

#: What the process of each task imports.
TASK_MODULES = (
    "girder_dask.http.girder_client",
    "girder_dask.worker.isolation.child",
    "girder_dask.client.rest_backend",
    "cloudpickle",
    "concurrent.futures.thread",
)

# The server ignores the ends of its children. It ends with the worker, not by these signals.
_IGNORED = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Serve until the worker has ended."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    worker = os.pidfd_open(int(sys.argv[2]))
    if os.getppid() != int(sys.argv[2]):  # the worker has died before
        return
    handlers = _ignored({})
    request = json.loads(channel.recv(MAX_MESSAGE_BYTES) or b"{}")
    if not request:
        return
    sys.path[:] = request["path"]
    report = _import_all(TASK_MODULES)
    if report["threads"] is None:
        report = _import_all(request["modules"])
    handlers = _ignored(handlers)
    for stream in (sys.stdout, sys.stderr):  # or each fork writes their buffers again
        stream.flush()
    flush_c_streams()
    channel.send(json.dumps(report).encode())
    if report["threads"] is None:
        gc.collect()
        gc.freeze()  # so that the collector of a fork does not write to all of this memory
        _serve(channel, worker, handlers)


def _ignored(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Ignore signals, and return their handlers, including those that imports have set."""
    found = {number: signal.signal(number, signal.SIG_IGN) for number in _IGNORED}
    return {n: handlers.get(n, h) if h == signal.SIG_IGN else h for n, h in found.items()}


def _import_all(modules: Iterable[str]) -> dict[str, Any]:
    """Import modules. Return the errors by module, and the module that has started threads."""
    failed: list[tuple[str, str]] = []
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as e:  # noqa: BLE001 - a module may raise anything
            failed.append((module, f"{type(e).__name__}: {e}"[:500]))
        if _threads() > 1:
            return {"failed": failed, "threads": module}
    return {"failed": failed, "threads": None}


def _threads() -> int:
    try:
        return len(list(Path("/proc/self/task").iterdir()))  # also those that Python does not know
    except OSError:
        return threading.active_count()


def _serve(channel: socket.socket, worker: int, handlers: Mapping[int, Any]) -> None:
    spare = _spare(channel, worker, handlers)
    while True:
        ready, _, _ = select.select([channel.fileno(), worker], [], [])
        if worker in ready:
            return
        message, fds, _, _ = socket.recv_fds(
            channel, MAX_MESSAGE_BYTES, DESCRIPTOR_COUNT, socket.MSG_CMSG_CLOEXEC
        )
        if (
            message != FORK_REQUEST or len(fds) != DESCRIPTOR_COUNT
        ):  # the worker has closed the channel
            return
        if not _assign(spare, fds):  # the spare was killed
            _assign(_spare(channel, worker, handlers), fds)
        for fd in fds:
            os.close(fd)
        spare = _spare(channel, worker, handlers)


def _assign(spare: socket.socket | None, fds: Sequence[int]) -> bool:
    """Give a spare subreaper its task. Return False if it is gone."""
    if spare is None:
        return False
    with spare:
        try:
            socket.send_fds(spare, [FORK_REQUEST], fds)
        except OSError:
            return False
    return True


def _spare(
    channel: socket.socket, worker: int, handlers: Mapping[int, Any]
) -> socket.socket | None:
    """Fork a subreaper and its task's process in advance. Return the socket at which they wait."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid = os.fork()
    except OSError:
        pid = -1
    if pid == 0:
        channel.close()
        ours.close()
        _run_subreaper(theirs, worker, handlers)
    theirs.close()
    if pid == -1:
        ours.close()
        return None
    return ours


def _run_subreaper(
    assignments: socket.socket, worker: int, handlers: Mapping[int, Any]
) -> NoReturn:
    """Fork the process of a task, wait for its descriptors, and watch it."""
    os.setsid()
    to_task, of_subreaper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    task = subreaper.fork()
    if task == 0:
        assignments.close()
        to_task.close()
        os.close(worker)
        _run_task(of_subreaper, handlers)
    of_subreaper.close()
    fds = _receive_descriptors(assignments, handlers)
    with to_task:
        try:
            socket.send_fds(to_task, [FORK_REQUEST], fds[1:])
        except OSError:  # the task's process was killed
            os._exit(1)
    for fd in fds[1:]:
        os.close(fd)
    subreaper.announce(fds[0])
    subreaper.watch(fds[0], task, worker=worker)


def _run_task(assignments: socket.socket, handlers: Mapping[int, Any]) -> NoReturn:
    """Wait for a task, and run it like a new process."""
    control, file, output, errors, directory = _receive_descriptors(assignments, handlers)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.fchdir(directory)
    for fd in (output, errors, directory):
        os.close(fd)
    importlib.invalidate_caches()
    random = sys.modules.get("numpy.random")
    if random is not None:  # unlike Python's, it repeats its numbers in each fork
        random.seed()
    child.main(control, file)
    child.exit_process()


def _receive_descriptors(assignments: socket.socket, handlers: Mapping[int, Any]) -> list[int]:
    """Wait for the descriptors of a task. End this process if there are none."""
    with assignments:
        _, fds, _, _ = socket.recv_fds(
            assignments, len(FORK_REQUEST), DESCRIPTOR_COUNT, socket.MSG_CMSG_CLOEXEC
        )
    if not fds:  # the server has ended
        os._exit(0)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return list(fds)


if __name__ == "__main__":
    main()
