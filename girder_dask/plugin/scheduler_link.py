"""The link to the scheduler: a thread that sends new jobs and cancellations.

Recording a job must never wait for the cluster. Before a job is sent, the database records to which
scheduler, so that no other scheduler runs the same attempt. Messages that cannot be delivered are
dropped and logged: a scheduler claims the jobs that it lacks as soon as it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from girder_dask.plugin.scheduler_answers import refusal_reason
from girder_dask.plugin.scheduler_rpc import SchedulerRpc
from girder_dask.protocol.messages import JobSpec
from girder_dask.utils.background import Guard
from girder_dask.utils.forks import reset_after_fork

__all__ = ["HandOver", "ReachabilityCallback", "SchedulerLink"]

logger = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 10.0
_MAX_BATCH_JOBS = 500
# The pause between two deliveries: a multiple of the time that the last one took, within bounds. A
# single job is sent at once, and a request that starts many jobs is not slowed down.
_MIN_DELIVERY_PAUSE_S, _MAX_DELIVERY_PAUSE_S, _PAUSE_FACTOR = 0.02, 0.1, 9.0
# The interval between checks whether the scheduler answers.
_PROBE_INTERVAL_S = 15.0
# Short, so that the thread stops soon when it is asked to.
_MAX_ERROR_DELAY_S = 5.0

_T = TypeVar("_T")

#: Takes the reason why the scheduler is unreachable, or None if it answers, and the ids of jobs
#: that were not sent for that reason.
ReachabilityCallback = Callable[[str | None, Sequence[str]], None]

#: Takes the id of a scheduler, or None if it is unreachable, and the ids of new jobs. Records that
#: the jobs go to this scheduler, and returns the ids of those that no other scheduler has.
HandOver = Callable[[str | None, Sequence[str]], Collection[str]]


class SchedulerLink:
    """The link that sends jobs and cancellations to the scheduler.

    Methods without a timeout return at once, except :meth:`close`.

    Parameters
    ----------
    address
        Returns the scheduler's address, or None. Called before each delivery, so that a changed
        setting takes effect.
    on_reachability
        Called from any thread when the scheduler becomes reachable or unreachable, and for jobs
        that were not sent. It must return at once.
    hand_over
        Called in the thread of the link before jobs are sent.
    site
        Returns the id of this Girder. A scheduler of another Girder gets no job, since the tokens
        of the job would go to that Girder.
    try_next
        Called with an address at which no scheduler takes jobs. Returns True if ``address`` returns
        another one now that has not been tried.
    """

    def __init__(
        self,
        address: Callable[[], str | None],
        on_reachability: ReachabilityCallback = lambda _unreachable_reason, _ids: None,
        hand_over: HandOver = lambda _scheduler, ids: ids,
        site: Callable[[], str | None] = lambda: None,
        try_next: Callable[[str], bool] = lambda _failed: False,
    ) -> None:
        self._address = address
        self._site = site
        self._try_next = try_next
        self._on_reachability = on_reachability
        self._hand_over = hand_over
        self._reset()
        reset_after_fork(self, SchedulerLink._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._thread: _LinkThread | None = None

    def submit(self, specs: Sequence[JobSpec]) -> None:
        """Send jobs."""
        self._ensure_thread().put(specs=specs)

    def cancel(self, ids: Sequence[str]) -> None:
        """Send cancellations of jobs."""
        self._ensure_thread().put(cancels=ids)

    def cancel_now(self, ids: Sequence[str], timeout: float) -> Collection[str] | None:
        """Make the scheduler cancel jobs; return the ids of those that have started or may have.

        Return None if the scheduler is unreachable or does not answer within ``timeout`` seconds.
        """
        thread = self._ensure_thread()
        return None if thread.state["reachable"] is False else thread.cancel_now(ids, timeout)

    def status(self) -> dict[str, Any]:
        """Return ``address``, ``reachable`` (None: not tried yet), ``error`` and ``since``."""
        thread = self._thread
        state = thread.state if thread is not None else _unknown_state()
        return {"address": self._address(), **state}

    def facts(self) -> dict[str, int]:
        """Return ``unreachable`` (0 or 1), ``waiting`` jobs and ``failures``, if it has begun."""
        thread = self._thread
        return {} if thread is None else thread.facts()

    def connect(self) -> None:
        """Start to connect, so that the first job does not wait for the connection."""
        self._ensure_thread()

    def check(self, timeout: float) -> dict[str, Any]:
        """Connect to the scheduler within ``timeout`` seconds, and return the status."""
        self._ensure_thread().check(timeout)
        return self.status()

    def workers(self, timeout_s: float) -> list[dict[str, Any]]:
        """Return the workers, each with its jobs; none if the scheduler does not answer in time."""
        return self._ensure_thread().workers(timeout_s)

    def close(self) -> None:
        """Stop the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    def _ensure_thread(self) -> _LinkThread:
        with self._lock:
            if self._thread is None:
                self._thread = _LinkThread(
                    self._address,
                    self._on_reachability,
                    self._hand_over,
                    self._site,
                    self._try_next,
                )
            return self._thread


def _unknown_state() -> dict[str, Any]:
    return {"reachable": None, "error": None, "since": None}


class _LinkThread:
    """The thread of a link: an event loop with a queue of jobs and cancellations."""

    def __init__(
        self,
        address: Callable[[], str | None],
        on_reachability: ReachabilityCallback,
        hand_over: HandOver,
        site: Callable[[], str | None],
        try_next: Callable[[str], bool],
    ) -> None:
        self.state = _unknown_state()
        self._failures = 0
        self._try_next = try_next
        self._failed_address: str | None = None
        self._address = address
        self._on_reachability = on_reachability
        self._hand_over = hand_over
        self._unreachable_reason: str | None = None  # for users
        self._lock = threading.Lock()
        self._specs: list[JobSpec] = []
        self._cancels: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._stopping = False
        self._rpc = SchedulerRpc(site)
        self._scheduler_id: str | None = None
        self._id_connections: Sequence[Any] = ()  # one of them brought it
        self._told_at = -math.inf
        self._thread = threading.Thread(target=self._run_loop, name="girder-dask-link", daemon=True)
        self._thread.start()

    def facts(self) -> dict[str, int]:
        unreachable = int(self.state["reachable"] is False)
        waiting = len(self._specs)
        return {"unreachable": unreachable, "waiting": waiting, "failures": self._failures}

    def put(self, specs: Sequence[JobSpec] = (), cancels: Sequence[str] = ()) -> None:
        with self._lock:
            idle = not self._specs and not self._cancels
            self._specs.extend(specs)
            self._cancels.extend(cancels)
        if self._unreachable_reason is not None and specs:
            # Reported at once, since the next connection attempt takes seconds.
            self._on_reachability(self._unreachable_reason, [spec.id for spec in specs])
        if idle:
            self._loop.call_soon_threadsafe(self._wake.set)

    def check(self, timeout: float) -> None:
        self._result_of(self._hello(), timeout)

    def cancel_now(self, ids: Sequence[str], timeout: float) -> Collection[str] | None:
        answer = self._result_of(self._call("girder_cancel", jobs=list(ids)), timeout)
        return None if answer is None else answer.get("begun")

    def workers(self, timeout_s: float) -> list[dict[str, Any]]:
        answer = self._result_of(self._call("girder_workers"), timeout_s)
        return [] if answer is None else list(answer["workers"])

    def _result_of(self, work: Coroutine[Any, Any, _T], timeout: float) -> _T | None:
        call = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return call.result(timeout)
        except TimeoutError:
            call.cancel()
            return None

    def stop(self) -> None:
        self._stopping = True
        self._loop.call_soon_threadsafe(self._wake.set)
        self._thread.join(_ANSWER_TIMEOUT_S)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        guard = Guard(logger, "The link to the scheduler", max_delay_s=_MAX_ERROR_DELAY_S)
        with guard:
            await self._hello()
        while not self._stopping:
            with guard:
                await self._step()
            if guard.failed:
                await asyncio.sleep(guard.delay_s)
                self._wake.set()  # put() sets it only when the queue was empty
        with guard:
            self._rpc.disconnect()

    async def _step(self) -> None:
        try:
            async with asyncio.timeout(_PROBE_INTERVAL_S):
                await self._wake.wait()
        except TimeoutError:
            await self._hello()
        self._wake.clear()
        await self._deliver_all()

    async def _deliver_all(self) -> None:
        while True:
            start = time.monotonic()
            if not await self._deliver():
                return
            # Jobs that come during the pause are sent together.
            pause = min(_PAUSE_FACTOR * (time.monotonic() - start), _MAX_DELIVERY_PAUSE_S)
            await asyncio.sleep(
                0.0 if len(self._specs) > _MAX_BATCH_JOBS else max(pause, _MIN_DELIVERY_PAUSE_S)
            )

    async def _deliver(self) -> bool:
        specs = []
        if self._specs:
            scheduler = await self._current_scheduler()
            with self._lock:
                # If it is unreachable, the first scheduler that claims them may have all jobs.
                most = len(self._specs) if scheduler is None else _MAX_BATCH_JOBS
                specs, self._specs = self._specs[:most], self._specs[most:]
            await self._submit(scheduler, specs)
            if self._unreachable_reason is not None:
                self._on_reachability(self._unreachable_reason, [spec.id for spec in specs])
        with self._lock:
            cancels, self._cancels = self._cancels, []
        if cancels:
            await self._call("girder_cancel", jobs=cancels)
        return bool(specs or cancels)

    async def _submit(self, scheduler: str | None, specs: Sequence[JobSpec]) -> None:
        try:
            taken = set(self._hand_over(scheduler, [spec.id for spec in specs]))
        except Exception as e:  # noqa: BLE001 - the database may be down
            logger.warning("Jobs are not sent, since their scheduler cannot be recorded: %r", e)
            return
        wires = [spec.to_wire() for spec in specs if spec.id in taken]
        if wires and scheduler is not None:
            # Tried once, since the scheduler may have received and run the jobs already.
            await self._call("girder_submit", tries=1, scheduler=scheduler, specs=wires)

    async def _current_scheduler(self) -> str | None:
        """Return the id of the scheduler if it takes jobs of this Girder.

        It is asked again after a while, and if no connection to it is left open: its end closes
        them.
        """
        await asyncio.sleep(0)  # handles the ends of connections
        if self._is_id_valid():
            with contextlib.suppress(Exception):  # the database, which has the address, may be down
                if self._rpc.address == self._address():
                    return self._scheduler_id
        return await self._hello()

    def _is_id_valid(self) -> bool:
        if time.monotonic() - self._told_at > _PROBE_INTERVAL_S:
            return False
        return any(not connection.closed() for connection in self._id_connections)

    async def _hello(self) -> str | None:
        """Connect, and return the id of the scheduler that takes jobs."""
        answer = await self._greet()
        while answer is None and self._failed_address is not None:
            if not self._try_next(self._failed_address):
                break
            answer = await self._greet()
        self._scheduler_id = str(answer["scheduler"]) if answer is not None else None
        # One that does not know its Girder yet is asked each time: it may be that of another.
        is_ours = answer is not None and answer.get("site") is not None
        self._id_connections = self._rpc.connections if is_ours else ()
        self._told_at = time.monotonic()
        return self._scheduler_id

    async def _greet(self) -> Mapping[str, Any] | None:
        """Return what a scheduler says of itself, if it takes jobs."""
        answer = await self._call("girder_hello")
        if answer is None or answer.get("leads") is not False:
            return answer
        self._failed_address = self._rpc.address
        self._record_failure(
            f"the scheduler at {self._failed_address} stands by for the one at {answer['leader']}",
            "the Dask scheduler to which Girder sends jobs stands by for another one",
        )
        return None

    async def _call(
        self, operation: str, tries: int = 2, **arguments: Any
    ) -> Mapping[str, Any] | None:
        """Call a remote procedure, and return its answer, or None after a failure."""
        self._failed_address = None
        try:
            address = self._address()
        except Exception as e:  # noqa: BLE001 - it reads the database, which may be down
            self._record_failure(f"the address of the scheduler cannot be read ({e!r})")
            return None
        if not address:
            self._record_failure(
                "no scheduler is set (the setting dask.scheduler_address)",
                "no Dask scheduler is set in Girder (dask.scheduler_address)",
            )
            return None
        # The second try is for a connection that the scheduler has closed meanwhile.
        for left in reversed(range(tries)):
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    answer = await self._rpc.call(address, operation, arguments)
            except Exception as e:  # noqa: BLE001 - a remote error has its original type
                self._rpc.disconnect()
                self._failed_address = address
                if not left or isinstance(e, TimeoutError):
                    error = f"the scheduler at {address} does not take jobs ({e!r})"
                    self._record_failure(error, refusal_reason(address, e))
                    return None
            else:
                self._record_success(address)
                return answer
        return None

    def _record_success(self, address: str) -> None:
        if not self.state["reachable"]:
            logger.info("Connected to the Dask scheduler at %s", address)
            self.state = {"reachable": True, "error": None, "since": time.time()}
        self._report(None)

    def _record_failure(self, error: str, reason: str | None = None) -> None:
        self._failures += 1
        if self.state["error"] != error:
            logger.warning("Jobs stay queued: %s", error)
            self.state = {"reachable": False, "error": error, "since": time.time()}
        if reason is not None:
            self._report(reason)

    def _report(self, reason: str | None) -> None:
        if self._unreachable_reason != reason:
            self._unreachable_reason = reason
            self._on_reachability(reason, [])
