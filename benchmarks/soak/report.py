"""The report of a soak: ``soak.json``, and plots of the memory and of the jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tests.support.prometheus import Prometheus

__all__ = ["QUERIES", "draw", "series", "write"]

#: What is asked of Prometheus, by the labels of the lines of the plot.
QUERIES = {
    "waiting": 'sum(girder_dask_jobs{state="QUEUED"})',
    "running": 'sum(girder_dask_jobs{state="RUNNING"})',
    "ended in the last minute": "sum(increase(girder_dask_jobs_ended_total[1m]))",
}
_POINTS = 240


def series(
    prometheus: Prometheus, begun: float, ended: float
) -> dict[str, list[tuple[float, float]]]:
    """Return pairs of seconds since the start and a value, for each of the queries."""
    step = max(1.0, (ended - begun) / _POINTS)
    found: dict[str, list[tuple[float, float]]] = {}
    for label, query in QUERIES.items():
        answer = requests.get(
            f"{prometheus.url}/api/v1/query_range",
            params={"query": query, "start": str(begun), "end": str(ended), "step": str(step)},
            timeout=60,
        ).json()
        assert answer["status"] == "success", answer
        found[label] = [
            (round(float(at) - begun, 1), float(value))
            for line in answer["data"]["result"]
            for at, value in line["values"]
        ]
    return found


def write(report: Mapping[str, Any], directory: Path) -> None:
    """Write ``soak.json`` and the plots."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "soak.json").write_text(json.dumps(report) + "\n")
    draw(report, directory)


def draw(report: Mapping[str, Any], directory: Path) -> None:
    """Draw ``soak-memory.svg`` and ``soak-jobs.svg``."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "girder_dask"  # the same results make the same file
    from matplotlib import pyplot

    plots = {
        "soak-memory": (_memory, "memory, MiB", report["memory"]),
        "soak-jobs": (_jobs, "jobs", report["series"]),
    }
    for name, (plot, label, lines) in plots.items():
        figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
        plot(axes, lines)
        _mark(axes, report["operations"])
        axes.set(xlabel="minutes", ylabel=label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def _memory(axes: Axes, samples: Mapping[str, Sequence[Sequence[float]]]) -> None:
    for name, found in sorted(samples.items()):
        minutes = [seconds / 60 for seconds, *_ in found]
        axes.plot(minutes, [sample[1] for sample in found], label=name, linewidth=1)


def _jobs(axes: Axes, lines: Mapping[str, Sequence[Sequence[float]]]) -> None:
    for label, points in lines.items():
        minutes = [seconds / 60 for seconds, _ in points]
        axes.plot(minutes, [count for _, count in points], label=label, linewidth=1)


def _mark(axes: Axes, operations: Sequence[Sequence[Any]]) -> None:
    """Mark the operations that are no routine."""
    for seconds, name in operations:
        axes.axvline(seconds / 60, color="tab:gray", linestyle=":", linewidth=0.8)
        axes.text(
            *(seconds / 60, 0.98, name),
            transform=axes.get_xaxis_transform(),
            rotation=90,
            fontsize=6,
            va="top",
            ha="right",
        )
