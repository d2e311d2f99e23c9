"""A chaos monkey: kills parts of a stack at random, while a supervisor restarts them."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from girder_dask.errors import StackError
from girder_dask.standalone.report import Reporter
from girder_dask.standalone.supervisor import Supervisor
from tests.support.fault_site import FaultStack

__all__ = ["Blow", "Hit", "Monkey", "blows"]

_POLL = 0.05
# Seconds within which a victim that is down must be restarted.
_MOST_WAIT = 120.0


@dataclass(frozen=True)
class Blow:
    """A planned kill: its victim, and the minimum seconds since the previous one.

    ``whole`` tells whether the nanny of a worker is killed as well.
    """

    pause: float
    victim: str
    whole: bool = True

    def __str__(self) -> str:
        return f"{self.victim}{'' if self.whole else ' without its nanny'}"


@dataclass(frozen=True)
class Hit:
    """A process that was killed, and the time, in seconds since the epoch."""

    blow: Blow
    pid: int
    time: float


def blows(seed: int, seconds: float, workers: int) -> list[Blow]:
    """Return the kills within ``seconds``; the same for the same seed.

    Each part is killed at least once.
    """
    chance = random.Random(seed)  # noqa: S311 - to be dealt again
    victims = ["scheduler", "girder", *(f"worker-{n}" for n in range(workers))]
    left = chance.sample(victims, len(victims))
    made: list[Blow] = []
    while left or sum(blow.pause for blow in made) < seconds:
        victim = left.pop() if left else chance.choice(victims)
        whole = not victim.startswith("worker") or chance.random() < 0.5
        made.append(Blow(chance.uniform(0.2, 4.0), victim, whole))
    return made


class Monkey:
    """Kills parts of a stack, and restarts them."""

    def __init__(self, stack: FaultStack) -> None:
        self._stack = stack
        self.diary: list[str] = []
        self.hits: list[Hit] = []
        self._began = time.monotonic()
        # Parts are killed far more often than in production, so none is given up for that.
        self._supervisor = Supervisor(
            stack.parts,
            _Diary(self._note),
            start=stack.start_again,
            clear=stack.clear,
            pause_s=0.3,
            early_s=0,
            max_early_ends=20,
        )

    def deal(self, blow: Blow) -> None:
        """Kill the victim of a blow. Wait first until it is up."""
        deadline = time.monotonic() + _MOST_WAIT
        while (process := self.process(blow)) is None:
            assert time.monotonic() < deadline, f"{blow} does not come back to be killed"
            self.tend(_POLL)
        part = self._stack.part(blow.victim)
        now = time.time()
        if blow.whole:
            part.kill()
            ours = part.exit_code == -signal.SIGKILL
        else:
            process.kill()
            process.wait(10)
            ours = not process.is_running()
        if ours:
            self.hits.append(Hit(blow, process.pid, now))
        self._note(f"{'killed' if ours else 'came too late for'} {blow}, process {process.pid}")

    def process(self, blow: Blow) -> psutil.Process | None:
        """Return the process that a blow would kill now, if it runs.

        A nanny whose first worker is killed ends, so the worker alone is no victim before it works.
        """
        part = self._stack.part(blow.victim)
        with contextlib.suppress(psutil.NoSuchProcess, StopIteration, StackError):
            if not part.running or not (blow.whole or part.is_ready()):
                return None
            if not blow.whole:
                found = self._stack.worker_process(blow.victim)
                return None if found.status() == psutil.STATUS_ZOMBIE else found
            return psutil.Process(part.pid)
        return None

    def tend(self, seconds: float) -> None:
        """Restart ended parts for ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._supervisor.poll()
            time.sleep(_POLL)

    def whole(self) -> bool:
        """Restart ended parts, and return True if all parts work."""
        self._supervisor.poll()
        return self._supervisor.is_settled

    def _note(self, text: str) -> None:
        self.diary.append(f"{time.monotonic() - self._began:7.2f} s  {text}")


class _Diary(Reporter):
    """A reporter that notes the supervisor's restarts."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def ready(self, part: str, seconds: float) -> None:
        self._note(f"{part} is ready after {seconds:.1f} s")

    def failed(self, part: str, text: str) -> None:  # noqa: ARG002 - the text names it
        self._note(text.partition("\n")[0])
