"""The capture of output, installed around streams that tests can read."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

from girder_dask.worker.capture import output_capture

__all__ = ["DEADLINE", "Worker", "bare_root_logger", "installed", "run_python", "wait_until"]

DEADLINE = 20.0


class Worker:
    """The worker's own streams."""

    def __init__(self) -> None:
        self.stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        self.stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)

    def out(self) -> str:
        return self.stdout.buffer.getvalue().decode()

    def err(self) -> str:
        return self.stderr.buffer.getvalue().decode()


@contextlib.contextmanager
def installed(level: int | str = "INFO") -> Iterator[Worker]:
    # Not a fixture: pytest puts its own filters and handlers around each phase of a test.
    worker = Worker()
    with contextlib.redirect_stdout(worker.stdout), contextlib.redirect_stderr(worker.stderr):
        output_capture.install(level)
        try:
            yield worker
        finally:
            output_capture.uninstall()


@contextlib.contextmanager
def bare_root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what
        tick.wait(0.005)


def run_python(code: str) -> str:
    """Run code in a process where pytest has changed nothing."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
