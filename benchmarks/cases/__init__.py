"""The benchmark cases, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.cases import growth, latency, throughput, transfers
from benchmarks.measurement import Measurement

__all__ = ["CASES", "Case", "find"]


@dataclass(frozen=True)
class Case:
    """A benchmark case.

    Attributes
    ----------
    name
        Its name on the command line.
    about
        A description of one line.
    measure
        Runs the case and returns its ratios by name. A ratio is None if a system was not measured.
    size
        The default size, in ``unit``.
    rounds
        The default number of rounds.
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
        "no-op jobs started with task.map, compared with a delay() loop and with Client.map",
        throughput.by_map,
        1000,
        ratios=("map_vs_girder_worker", "map_vs_dask", "http_per_job"),
    ),
    Case(
        "delay",
        "no-op jobs started with a delay() loop",
        throughput.by_delay,
        500,
        ratios=("delay_vs_girder_worker",),
    ),
    Case(
        "submit",
        "submissions without a running worker",
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
        "takeover",
        "no-op jobs of a task of girder_worker started with a delay() loop, on Dask and RabbitMQ",
        throughput.by_takeover,
        200,
        ratios=("takeover_delay_vs_rabbitmq",),
    ),
    Case(
        "takeover_latency",
        "one job at a time of a task of girder_worker, on Dask and RabbitMQ",
        latency.of_takeover,
        50,
        ratios=("takeover_latency_vs_rabbitmq",),
    ),
    Case(
        "beside_girder_worker",
        "no-op jobs started with task.map, with and without girder_worker's plugin in Girder",
        throughput.beside_girder_worker,
        1000,
        ratios=("beside_girder_worker",),
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
        "jobs that read the same file of 100 MB",
        transfers.files,
        40,
        ratios=("files_vs_girder_worker",),
    ),
    Case(
        "upload",
        "jobs that each upload a file of 20 MB",
        transfers.uploads,
        20,
        ratios=("upload_vs_girder_worker",),
    ),
    Case(
        "queue",
        "throughput with many queued jobs, compared with 500",
        growth.long_queues,
        20_000,
        rounds=2,
        ratios=("queue_growth",),
    ),
    Case(
        "scheduler",
        "CPU time of the scheduler per job, with and without our hooks",
        growth.scheduler_time,
        2000,
        ratios=("scheduler_overhead",),
    ),
    Case(
        "memory",
        "memory that processes keep per finished job",
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
        "one job at a time, in a thread or in its own process",
        latency.isolation,
        50,
        rounds=1,
    ),
    Case(
        "load",
        "latency at increasing rates of jobs, each for some seconds",
        latency.under_load,
        8,
        rounds=1,
        unit="seconds",
    ),
    Case(
        "workers",
        "CPU time of the scheduler per job with 10 and with 1,000 simulated workers",
        growth.many_workers,
        10_000,
        ratios=("workers_1000",),
    ),
    Case("sizes", "throughput by number of jobs", growth.sizes, 20_000, rounds=1),
    Case(
        "long_run",
        "jobs of one map, and the memory of each process meanwhile",
        growth.long_run,
        50_000,
        rounds=1,
    ),
)


def find(name: str) -> Case:
    """Return the case with a name, or the case that measures the ratio with that name.

    Raises
    ------
    KeyError
        If there is none.
    """
    for case in CASES:
        if name == case.name or name in case.ratios:
            return case
    raise KeyError(name)
