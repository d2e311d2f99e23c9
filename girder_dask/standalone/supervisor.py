"""Starting the parts of a stack again when they end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from girder_dask.errors import StackError
from girder_dask.standalone.part import Part
from girder_dask.standalone.report import Reporter
from girder_dask.utils.background import Guard

__all__ = ["Supervisor"]

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0


class _State(Enum):
    WORKS = "works"
    DOWN = "down"
    STARTING = "starting"
    GIVEN_UP = "given up"


@dataclass
class _Life:
    """What is known of one part."""

    part: Part
    state: _State = _State.WORKS
    quick_ends: int = 0
    due: float = 0.0

    @property
    def comes_back(self) -> bool:
        return self.state in {_State.DOWN, _State.STARTING}


class Supervisor:
    """Starts parts again that have ended, with the same addresses and data.

    A part waits for those before it in the order of the stack that come back, too: a worker
    without its scheduler would only end again. Workers do not wait for each other.

    Parts are started again after a pause that doubles while they end quickly. One that does so
    too often is given up, since its cause is not one that goes by itself.

    Parameters
    ----------
    parts
        All parts of the stack, in the order in which they are started.
    reporter
        Hears of what ends, and of what is started again.
    start
        Starts a part again.
    clear
        Removes what is left of a part that has ended.
    pause
        Seconds before a part is started again.
    quick
        A part that ends within so many seconds of its start has ended quickly.
    most
        How many quick ends in a row are enough.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        reporter: Reporter,
        *,
        start: Callable[[Part], None],
        clear: Callable[[Part], None],
        pause: float = 1.0,
        quick: float = 30.0,
        most: int = 5,
    ) -> None:
        self._lives = [_Life(part) for part in parts]
        self._guards = [Guard(logger, f"Looking after {part.name}") for part in parts]
        self._reporter = reporter
        self._start = start
        self._clear = clear
        self._pause = pause
        self._quick = quick
        self._most = most

    @property
    def settled(self) -> bool:
        """Whether nothing that has ended is still to do its work again."""
        return not any(life.comes_back for life in self._lives)

    def poll(self) -> bool:
        """Look at each part once, and say whether one has ended or was started."""
        changed = False
        for life, guard in zip(self._lives, self._guards, strict=True):
            with guard:  # or one part that cannot be looked at would end the others
                changed |= self._tend(life)
        return changed

    def _tend(self, life: _Life) -> bool:
        part = life.part
        if life.state is _State.WORKS and not part.running:
            self._ended(life, part.describe_end("has ended"))
            return True
        if life.state is _State.STARTING:
            return self._look_at_start(life)
        if life.state is _State.DOWN and time.monotonic() >= life.due and not self._waits(life):
            self._start_again(life)
            return True
        return False

    def _waits(self, life: _Life) -> bool:
        before = self._lives[: self._lives.index(life)]
        return any(other.comes_back for other in before if not other.part.is_worker)

    def _start_again(self, life: _Life) -> None:
        self._reporter.starting(life.part.name)
        try:
            self._start(life.part)
        except (StackError, OSError) as e:  # its program may be gone, or the disk be full
            self._ended(life, str(e))
        else:
            life.state = _State.STARTING

    def _look_at_start(self, life: _Life) -> bool:
        part = life.part
        try:
            if not part.is_ready():
                return False
        except StackError as e:
            self._ended(life, str(e))
            return True
        life.state = _State.WORKS
        self._reporter.ready(part.name, time.monotonic() - part.started_at)
        return False

    def _ended(self, life: _Life, how: str) -> None:
        part = life.part
        lived = time.monotonic() - part.started_at
        # One that never did its work has ended quickly, however long it tried.
        is_quick = lived < self._quick or life.state is not _State.WORKS
        life.quick_ends = life.quick_ends + 1 if is_quick else 0
        self._clear(part)
        if life.quick_ends >= self._most:
            life.state = _State.GIVEN_UP
            self._reporter.failed(part.name, f"{how}\n{self._last_word(part)}")
            return
        pause = min(self._pause * 2**life.quick_ends, _LONGEST_PAUSE)
        life.state = _State.DOWN
        life.due = time.monotonic() + pause
        self._reporter.failed(part.name, f"{how}\n{part.name} is started again in {pause:g} s.")

    def _last_word(self, part: Part) -> str:
        return (
            f"{part.name} has ended {self._most} times soon after its start, and is not started "
            f"again. {part.log} says why. Fix the cause, then stop the stack with Ctrl-C and "
            "start it anew; its data and its jobs are kept."
        )
