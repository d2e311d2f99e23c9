"""The sink of a task in a process of its own: text goes to the log, messages to the worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from girder_dask.jobs import JobStatus
from girder_dask.utils.forks import reset_after_fork
from girder_dask.worker.job_log.process_log import ProcessLog
from girder_dask.worker.job_log.selector_thread import get_selector_thread

__all__ = ["ProcessSink"]

# Seconds between two messages about progress, and between two that force a delivery.
_MESSAGE_INTERVAL_S = 0.05


class ProcessSink:
    """Sink of a job's output and progress that sends messages a few times a second.

    Parameters
    ----------
    send
        Called with the kind of a message and its content.
    log
        The log of this process.
    """

    def __init__(self, send: Callable[..., None], log: ProcessLog) -> None:
        self._send = send
        self._log = log
        self._progress: dict[str, Any] = {}
        self._reset()
        reset_after_fork(self, ProcessSink._reset)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._next_progress = self._next_flush = float("-inf")
        self._has_timer = False

    def write(self, text: str) -> None:
        """Write text to the log."""
        self._log.write(text)

    def progress(self, changes: Mapping[str, Any]) -> None:
        """Send changes of the progress, at once or together with later ones."""
        with self._lock:
            self._progress.update(changes)
            delay_s = self._next_progress - time.monotonic()
            if delay_s <= 0:
                self.send_progress()
            elif not self._has_timer:
                self._has_timer = True
                get_selector_thread().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        with self._lock:
            self._has_timer = False
            self.send_progress()

    def send_progress(self) -> None:
        """Send the changes that have not been sent yet."""
        with self._lock:
            changes, self._progress = self._progress, {}
            if changes:
                self._next_progress = time.monotonic() + _MESSAGE_INTERVAL_S
                self._send("progress", changes)

    def status(self, status: JobStatus) -> None:
        """Send a status, after the progress so far."""
        self.send_progress()
        self._send("status", int(status))

    def image(self, name: str, digest: str) -> None:
        """Send the image of a container, before the container is made."""
        self._send("image", [name, digest])

    def flush(self) -> None:
        """Have everything so far delivered to Girder."""
        self._log.flush()
        now = time.monotonic()
        if now >= self._next_flush:
            self._next_flush = now + _MESSAGE_INTERVAL_S
            self.send_progress()
            self._send("flush")
