"""The thread that waits on the pipes of all jobs, and keeps the timers of their logs.

A process has one, however many jobs it runs. It calls back when a pipe can be read, or when a
timer is due.
"""

from __future__ import annotations

import contextlib
import contextvars
import heapq
import itertools
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable
from functools import partial

from girder_dask.utils.background import Guard

__all__ = ["SelectorThread", "abandon_selector_thread", "get_selector_thread"]

logger = logging.getLogger(__name__)

# Seconds after which a descriptor is watched again after its callback has failed.
_RETRY_DELAY_S = 1.0


class SelectorThread:
    """Thread that calls back when a descriptor can be read, or when a timer is due.

    It is started on first use and stays. Every method may be called from any thread.
    Callbacks run in the selector thread and must not block.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._paused: dict[int, Callable[[], None]] = {}
        self._guard = Guard(
            logger, "The selector thread of the jobs' logs", max_delay_s=_RETRY_DELAY_S
        )
        self._callbacks = Guard(logger, "A callback of the selector thread of the jobs' logs")
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._on_wake)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``fd`` can be read, until :meth:`unwatch`."""
        with self._lock:
            self._paused.pop(fd, None)
            # epoll and kqueue accept new descriptors while another thread waits on them.
            self._selector.register(fd, selectors.EVENT_READ, callback)
        self._start()

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``. Call this before closing it."""
        with self._lock, contextlib.suppress(KeyError):
            if self._paused.pop(fd, None) is None:
                self._selector.unregister(fd)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, ``delay_s`` seconds from now."""
        with self._lock:
            due = time.monotonic() + delay_s
            heapq.heappush(self._timers, (due, next(self._numbers), callback))
        self._start()
        with contextlib.suppress(BlockingIOError):  # full: the thread is awake anyway
            os.write(self._wake_write, b"\0")

    def abandon(self) -> None:
        """Close this process's copies of the descriptors, in a forked child.

        The selector is closed without unregistering anything: a child shares the kernel's
        epoll object with its parent.
        """
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(
                target=self._run, name="girder-dask-log-selector", daemon=True
            )
            thread = self._thread
        # In an empty context: the thread belongs to no job, whichever job first needs it.
        contextvars.Context().run(thread.start)

    def _run(self) -> None:
        while True:
            with self._guard:
                self._turn()
            if self._guard.failed:
                time.sleep(self._guard.delay_s)

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._timeout_s()):
            # The thread serves all jobs, so it continues without the one that failed.
            with self._callbacks:
                key.data()
            if self._callbacks.failed:
                self._pause(key.fd, key.data)
        for callback in self._due():
            with self._callbacks:
                callback()

    def _pause(self, fd: int, callback: Callable[[], None]) -> None:
        with self._lock:
            if fd in self._selector.get_map() and fd != self._wake_read:
                self._selector.unregister(fd)
                self._paused[fd] = callback
                self.call_later(_RETRY_DELAY_S, partial(self._watch_again, fd))

    def _watch_again(self, fd: int) -> None:
        with self._lock:
            callback = self._paused.get(fd)
            if callback is not None:
                self.watch(fd, callback)

    def _timeout_s(self) -> float | None:
        with self._lock:
            if not self._timers:
                return None
            return max(0.0, self._timers[0][0] - time.monotonic())

    def _due(self) -> list[Callable[[], None]]:
        callbacks = []
        with self._lock:
            while self._timers and self._timers[0][0] <= time.monotonic():
                callbacks.append(heapq.heappop(self._timers)[2])
        return callbacks

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)


_instance: SelectorThread | None = None
_instance_lock = threading.RLock()


def get_selector_thread() -> SelectorThread:
    """Return the selector thread of this process."""
    global _instance
    with _instance_lock:
        if _instance is None:
            _instance = SelectorThread()
        return _instance


def abandon_selector_thread() -> None:
    """Drop the selector thread of the parent, in a forked child."""
    global _instance, _instance_lock
    _instance_lock = threading.RLock()
    if _instance is not None:
        _instance.abandon()
        _instance = None
