"""The cases, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.cases import latency, throughput
from benchmarks.measurement import Measurement

__all__ = ["CASES", "Case", "find"]


@dataclass(frozen=True)
class Case:
    """Something that is measured.

    Attributes
    ----------
    name
        Its name on the command line.
    about
        What it is, in a line.
    measure
        Measures, and returns ratios by their names; None for those of which a system is missing.
    size
        How large it is by default, in ``unit``.
    rounds
        How often it is measured by default.
    ratios
        The names of the ratios that it returns.
    """

    name: str
    about: str
    measure: Callable[[Measurement], dict[str, float | None]]
    size: int
    rounds: int = 3
    ratios: tuple[str, ...] = ()
    unit: str = "jobs"


CASES = (
    Case(
        "map",
        "jobs that do nothing, started with task.map, against a loop of delay() and Client.map",
        throughput.by_map,
        1000,
        ratios=("map_vs_girder_worker", "map_vs_dask", "http_per_job"),
    ),
    Case(
        "delay",
        "jobs that do nothing, started with a loop of delay()",
        throughput.by_delay,
        500,
        ratios=("delay_vs_girder_worker",),
    ),
    Case(
        "submit",
        "submissions with no worker running",
        throughput.submissions,
        500,
        ratios=("submit_vs_girder_worker",),
    ),
    Case(
        "latency",
        "one job at a time on an idle system",
        latency.idle,
        50,
        ratios=("latency_vs_girder_worker",),
    ),
)


def find(name: str) -> Case:
    """Return the case with a name, or that a ratio is of.

    Raises
    ------
    KeyError
        If there is none.
    """
    for case in CASES:
        if name == case.name or name in case.ratios:
            return case
    raise KeyError(name)
