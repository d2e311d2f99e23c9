"""Kills parts of a stack at random, while a supervisor starts them again."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from fault_site import FaultStack

from girder_dask.standalone.report import Reporter
from girder_dask.standalone.supervisor import Supervisor

__all__ = ["Blow", "Monkey", "blows"]

_POLL = 0.05


@dataclass(frozen=True)
class Blow:
    """What is killed, and how many seconds after the blow before.

    ``whole`` tells for a worker whether its nanny is killed, too.
    """

    pause: float
    victim: str
    whole: bool = True

    def __str__(self) -> str:
        return f"{self.victim}{'' if self.whole else ' without its nanny'}"


def blows(seed: int, seconds: float, workers: int) -> list[Blow]:
    """Return what is killed within so many seconds; the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - to be dealt again
    victims = ["scheduler", "girder", *(f"worker-{n}" for n in range(workers))]
    made: list[Blow] = []
    while sum(blow.pause for blow in made) < seconds:
        victim = chance.choice(victims)
        whole = not victim.startswith("worker") or chance.random() < 0.5
        made.append(Blow(chance.uniform(0.2, 4.0), victim, whole))
    return made


class Monkey:
    """Deals blows to a stack, and keeps it going."""

    def __init__(self, stack: FaultStack) -> None:
        self._stack = stack
        self.diary: list[str] = []
        self._began = time.monotonic()
        # Parts are killed far more often than in life, so none is given up for that.
        self._supervisor = Supervisor(
            stack.parts,
            _Diary(self._note),
            start=stack.start_again,
            clear=stack.clear,
            pause=0.3,
            quick=0,
            most=20,
        )

    def deal(self, blow: Blow) -> None:
        """Wait for the moment of a blow, and deal it to the victim, if it runs."""
        self.tend(blow.pause)
        part = self._stack.part(blow.victim)
        # One that is down is down; the next blow has another victim.
        with contextlib.suppress(psutil.NoSuchProcess, StopIteration):
            if part.running and blow.whole:
                part.kill()
                self._note(f"killed {blow}")
            elif part.running:
                self._stack.worker_process(blow.victim).kill()
                self._note(f"killed {blow}")

    def tend(self, seconds: float) -> None:
        """Start again what has ended, for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._supervisor.poll()
            time.sleep(_POLL)

    def whole(self) -> bool:
        """Start again what has ended, and say whether all parts do their work."""
        self._supervisor.poll()
        return self._supervisor.settled

    def _note(self, text: str) -> None:
        self.diary.append(f"{time.monotonic() - self._began:7.2f} s  {text}")


class _Diary(Reporter):
    """Writes down what the supervisor does."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def ready(self, part: str, seconds: float) -> None:
        self._note(f"{part} is ready after {seconds:.1f} s")

    def failed(self, part: str, text: str) -> None:  # noqa: ARG002 - the text names it
        self._note(text.partition("\n")[0])
