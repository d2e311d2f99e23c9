"""Plots of the results that depend on load, size or time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PICTURES", "draw"]

#: The labels of lines, by system and measured quantity.
_LINES = {
    ("dask", "throughput of map"): "Dask alone, Client.map",
    ("girder_dask", "throughput of map"): "girder_dask, map",
    ("girder_dask", "throughput of delay"): "girder_dask, a loop of delay()",
    ("girder_worker", "throughput of delay"): "girder_worker, a loop of delay()",
}
_PLAIN = "{x:,.10g}"  # not as powers of ten
_COLORS = {"girder_dask": "tab:blue", "girder_worker": "tab:orange", "dask": "tab:gray"}


def draw(report: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw the plots for which there are results, and return their paths.

    Existing plots are removed first, so that none is left from an earlier run.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "girder_dask"  # the same results make the same file
    from matplotlib import pyplot

    drawn = []
    for name, (case, plot) in PICTURES.items():
        path = directory / f"{name}.svg"
        path.unlink(missing_ok=True)
        results = [r for r in report["results"] if r["case"] == case]
        if results:
            figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
            plot(axes, results)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
            figure.savefig(path, metadata={"Date": None})
            pyplot.close(figure)
            drawn.append(path)
    return drawn


def _throughput(axes: Axes, results: list[dict[str, Any]]) -> None:
    for (system, what), label in _LINES.items():
        points: dict[int, list[float]] = {}
        for r in results:
            if (r["system"], r["what"]) == (system, what):
                points.setdefault(r["jobs"], []).append(r["value"])
        if points:
            jobs = sorted(points)
            rates = [sum(points[n]) / len(points[n]) for n in jobs]
            style = "--" if system == "girder_dask" and "delay" in what else "-"
            axes.plot(jobs, rates, f"o{style}", color=_COLORS[system], label=label)
    axes.set(xscale="log", xlabel="jobs", ylabel="jobs a second", title="Throughput")
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.set_ylim(bottom=0)


def _latency(axes: Axes, results: list[dict[str, Any]]) -> None:
    for system in dict.fromkeys(r["system"] for r in results):
        own = sorted((r for r in results if r["system"] == system), key=lambda r: r["rate"])
        rates = [r["rate"] for r in own]
        color = _COLORS[system]
        axes.plot(rates, [r["value"] for r in own], "o-", color=color, label=f"{system}, median")
        axes.plot(
            rates, [r["p95"] for r in own], "o:", color=color, label=f"{system}, 95th percentile"
        )
    axes.set(xscale="log", yscale="log", title="From delay() to SUCCESS, under load")
    axes.set(xlabel="jobs started a second", ylabel="milliseconds")
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.yaxis.set_major_formatter(_PLAIN)


def _memory(axes: Axes, results: list[dict[str, Any]]) -> None:
    for r in results:
        if "samples" in r:
            seconds, mib = zip(*r["samples"], strict=True)
            axes.plot(seconds, mib, label=r["what"].removeprefix("most memory of "))
    (jobs,) = {r["jobs"] for r in results if "jobs" in r}
    axes.set(xlabel="seconds", ylabel="resident memory in MiB", title=f"{jobs:,} jobs of one map")
    axes.set_ylim(bottom=0)


#: The case of each plot and the function that draws it, by the name of the plot.
PICTURES = {
    "throughput": ("sizes", _throughput),
    "latency": ("load", _latency),
    "memory": ("long_run", _memory),
}
