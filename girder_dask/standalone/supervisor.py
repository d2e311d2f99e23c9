"""The supervisor: restarts the parts of a stack that end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from girder_dask.errors import StackError
from girder_dask.standalone.report import Reporter
from girder_dask.standalone.stack_part import Part
from girder_dask.utils.background import Guard
from girder_dask.utils.backoff import Backoff

__all__ = ["Supervisor"]

logger = logging.getLogger(__name__)

_MAX_PAUSE_S = 30.0


class _PartState(Enum):
    WORKS = "works"
    DOWN = "down"
    STARTING = "starting"
    GIVEN_UP = "given up"


@dataclass
class _PartStatus:
    """The state of one part, as the supervisor sees it."""

    part: Part
    state: _PartState = _PartState.WORKS
    early_ends: int = 0
    due: float = 0.0

    @property
    def is_restarting(self) -> bool:
        return self.state in {_PartState.DOWN, _PartState.STARTING}


class Supervisor:
    """Restarts parts that have ended, with the same addresses and data.

    A part waits for the restart of those before it in the order of the stack: a worker without its
    scheduler would end again. Workers do not wait for each other.

    The pause before a restart doubles while a part ends early. A part that does so too often is
    given up, since its cause will not go away by itself.

    Parameters
    ----------
    parts
        All parts of the stack, in the order in which they are started.
    reporter
        Reports each end and each restart.
    start
        Restarts a part.
    clear
        Kills the processes that a part has left behind.
    pause_s
        Seconds before the first restart.
    early_s
        Seconds after the start within which an end is early.
    max_early_ends
        The number of early ends in a row after which a part is given up.
    max_log_bytes
        The size at which the log of a part is rotated.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        reporter: Reporter,
        *,
        start: Callable[[Part], None],
        clear: Callable[[Part], None],
        pause_s: float = 1.0,
        early_s: float = 30.0,
        max_early_ends: int = 5,
        max_log_bytes: int = 16 * 1024**2,
    ) -> None:
        self._statuses = [_PartStatus(part) for part in parts]
        self._guards = [Guard(logger, f"The supervision of {part.name}") for part in parts]
        self._reporter = reporter
        self._start = start
        self._clear = clear
        self._backoff = Backoff(pause_s, _MAX_PAUSE_S, jitter=0.0)
        self._early_s = early_s
        self._max_early_ends = max_early_ends
        self._max_log_bytes = max_log_bytes

    @property
    def is_settled(self) -> bool:
        """Whether no part is being restarted or waits for that."""
        return not any(status.is_restarting for status in self._statuses)

    def poll(self) -> bool:
        """Check each part once. Return True if one has ended or was restarted."""
        changed = False
        for status, guard in zip(self._statuses, self._guards, strict=True):
            with guard:  # an error of one part must not affect the others
                changed |= self._step(status)
        return changed

    def _step(self, status: _PartStatus) -> bool:
        part = status.part
        part.limit_log(self._max_log_bytes)
        if status.state is _PartState.WORKS and not part.running:
            self._record_end(status, part.describe_end("has ended"))
            return True
        if status.state is _PartState.STARTING:
            return self._check_start(status)
        if (
            status.state is _PartState.DOWN
            and time.monotonic() >= status.due
            and not self._is_blocked(status)
        ):
            self._start_again(status)
            return True
        return False

    def _is_blocked(self, status: _PartStatus) -> bool:
        before = self._statuses[: self._statuses.index(status)]
        return any(other.is_restarting for other in before if not other.part.is_worker)

    def _start_again(self, status: _PartStatus) -> None:
        self._reporter.starting(status.part.name)
        try:
            self._start(status.part)
        except (StackError, OSError) as e:  # its program may be gone, or the disk be full
            self._record_end(status, str(e))
        else:
            status.state = _PartState.STARTING

    def _check_start(self, status: _PartStatus) -> bool:
        part = status.part
        try:
            if not part.is_ready():
                return False
        except StackError as e:
            self._record_end(status, str(e))
            return True
        status.state = _PartState.WORKS
        self._reporter.ready(part.name, time.monotonic() - part.started_at)
        return False

    def _record_end(self, status: _PartStatus, how: str) -> None:
        part = status.part
        lived = time.monotonic() - part.started_at
        # An end before the part worked is early, however long the start took.
        is_early = lived < self._early_s or status.state is not _PartState.WORKS
        status.early_ends = status.early_ends + 1 if is_early else 0
        self._clear(part)
        if status.early_ends >= self._max_early_ends:
            status.state = _PartState.GIVEN_UP
            self._reporter.failed(part.name, f"{how}\n{self._give_up_message(part)}")
            return
        pause = self._backoff.delay_s(status.early_ends + 1)
        status.state = _PartState.DOWN
        status.due = time.monotonic() + pause
        self._reporter.failed(part.name, f"{how}\n{part.name} restarts in {pause:g} s.")

    def _give_up_message(self, part: Part) -> str:
        return (
            f"{part.name} has ended {self._max_early_ends} times soon after its start and is not "
            f"restarted. {part.log} says why. Fix the cause, stop the stack with Ctrl-C and start "
            "it again; its data and its jobs are kept."
        )
