"""The cases, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.cases import growth, latency, throughput, transfers
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
    Case(
        "log_lines",
        "numbered lines that a task prints, until all are in Girder",
        transfers.log_lines,
        200_000,
        rounds=5,
        ratios=("log_lines_vs_girder_worker",),
        unit="lines",
    ),
    Case(
        "files",
        "jobs over the same file of 100 MB",
        transfers.files,
        40,
        ratios=("files_vs_girder_worker",),
    ),
    Case(
        "upload",
        "jobs that each push a file of 20 MB",
        transfers.uploads,
        20,
        ratios=("upload_vs_girder_worker",),
    ),
    Case(
        "queue",
        "throughput while many jobs wait, and while 500 do",
        growth.long_queues,
        20_000,
        rounds=2,
        ratios=("queue_growth",),
    ),
    Case(
        "scheduler",
        "CPU time of the scheduler for each job, with our hooks and without",
        growth.scheduler_time,
        2000,
        ratios=("scheduler_overhead",),
    ),
    Case(
        "memory",
        "memory that processes keep for each finished job",
        growth.memory,
        20_000,
        rounds=1,
        ratios=("memory_per_job",),
    ),
    Case(
        "standalone",
        "map and delay with 2 workers of 2 threads, the default of girder-dask standalone",
        throughput.with_default_threads,
        1000,
    ),
    Case(
        "isolation",
        "one job at a time, in a thread and in a process of its own",
        latency.isolation,
        50,
        rounds=1,
    ),
    Case(
        "load",
        "latency at more and more jobs a second, each rate for some seconds",
        latency.under_load,
        8,
        rounds=1,
        unit="seconds",
    ),
    Case("sizes", "throughput with more and more jobs", growth.sizes, 20_000, rounds=1),
    Case(
        "long_run",
        "jobs from one map, with the memory of every process meanwhile",
        growth.long_run,
        50_000,
        rounds=1,
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
