"""The measurement of one case: its size, its rounds and its results."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.usage import cpu_seconds

if TYPE_CHECKING:
    from benchmarks.raw import RawDask
    from benchmarks.side import Side
    from benchmarks.stack import BenchmarkStack

__all__ = ["SYSTEMS", "Measurement"]

#: The systems that can be measured.
SYSTEMS = ("girder_dask", "girder_worker", "takeover", "beside_worker", "dask")


class Measurement:
    """The measurement of one case: the parameters of its function and its results.

    Parameters
    ----------
    case
        The name of the case.
    stack
        The systems.
    systems
        The names of the systems to measure.
    rounds
        The number of rounds.
    size
        The number of jobs, or of what else the case counts.
    """

    def __init__(
        self, case: str, stack: BenchmarkStack, systems: tuple[str, ...], rounds: int, size: int
    ) -> None:
        self.case = case
        self.stack = stack
        self.systems = systems
        #: The number of rounds.
        self.number = rounds
        self.size = size
        self.results: list[dict[str, Any]] = []
        #: Why a goal is missed regardless of its ratio, by the name of the ratio.
        self.failures: dict[str, str] = {}
        self._round = 0

    def rounds(self) -> Iterator[int]:
        """Yield the number of each round. A round measures all systems once, in turn."""
        for n in range(1, self.number + 1):
            self._round = n
            yield n

    def sides(self, *only: str) -> Iterator[Side]:
        """Yield each measured system with a Girder, while the other systems are suspended."""
        for name in only or ("girder_dask", "girder_worker"):
            if name in self.systems:
                side: Side = getattr(self.stack, name)
                self.stack.turn(name)
                yield side

    def dask(self) -> Iterator[RawDask]:
        """Yield Dask alone, if it is measured, while the other systems are suspended."""
        if "dask" in self.systems:
            alone = self.stack.dask
            self.stack.turn("dask")
            yield alone

    def record(
        self, system: str, what: str, value: float, unit: str, **details: Any
    ) -> dict[str, Any]:
        """Record a result of this round, and print it."""
        result = {
            "case": self.case,
            "round": self._round,
            "system": system,
            "what": what,
            "value": round(float(value), 6),
            "unit": unit,
            **details,
        }
        self.results.append(result)
        print(f"  {self._round}  {system:<24} {what:<32} {value:>12,.4g} {unit}", flush=True)
        return result

    @contextlib.contextmanager
    def cpu_time(self, system: str, groups: Mapping[str, Sequence[str]]) -> Iterator[None]:
        """Record the CPU time per job of a block of code, in ms.

        Parameters
        ----------
        system
            The name of the system.
        groups
            The names of processes, by the name of their group in the results.
        """

        def used(name: str) -> float:
            return sum(cpu_seconds(self.stack.part(part)) for part in groups[name])

        before = {name: used(name) for name in groups}
        yield
        for name, start in before.items():
            spent = 1000 * (used(name) - start) / self.size
            self.record(system, f"CPU time of {name}", spent, "ms/job")

    def fail(self, ratio: str, why: str) -> None:
        """Record that the goal of a ratio is missed regardless of its value."""
        self.failures[ratio] = why
        print(f"  {ratio}: {why}")

    def values(self, system: str, what: str) -> list[float]:
        """Return the values of a system in all rounds."""
        return [r["value"] for r in self.results if (r["system"], r["what"]) == (system, what)]

    def median(self, system: str, what: str) -> float | None:
        """Return the median over the rounds, None if the system was not measured."""
        values = self.values(system, what)
        return statistics.median(values) if values else None

    def ratio(self, what: str, over: str, under: str) -> float | None:
        """Return the median of one system over that of another, None if one is missing."""
        above, below = self.median(over, what), self.median(under, what)
        return above / below if above is not None and below else None
