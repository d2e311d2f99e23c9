"""Measure with one map of a million jobs, and write ``scale.json`` and a plot of the memory.

The jobs do nothing. One client records them over REST, two workers with two threads each run them
for a while, the scheduler is replaced, and the map is canceled.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.goals import SCALE_GOALS
from benchmarks.report import MEASURED
from benchmarks.scale.steps import Scale
from benchmarks.stack import BenchmarkStack
from benchmarks.usage import Watch
from girder_dask.standalone.launcher import stopping_on_signals

__all__ = ["main", "parser"]

_INTERRUPTED = 130
_BOUNDED = ("girder", "scheduler")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    made.add_argument("--jobs", type=int, default=1_000_000, help="the number of jobs")
    made.add_argument(
        "--output", type=Path, default=MEASURED / "scale", help="directory for the results"
    )
    return made


def measure(jobs: int) -> dict[str, Any]:
    """Take all steps on a stack of their own, and return the report."""
    results: list[dict[str, Any]] = []

    def record(what: str, value: float, unit: str) -> None:
        results.append({"what": what, "value": round(value, 4), "unit": unit})
        print(f"  {what:<60} {value:>12,.4g} {unit}", flush=True)

    with (
        tempfile.TemporaryDirectory(prefix="girder-dask-scale-") as name,
        BenchmarkStack(Path(name) / "stack", threads=2) as stack,
    ):
        scale = Scale(stack, jobs, record)
        parts = {part: stack.part(part) for part in ("mongod", *_BOUNDED)}
        watch = Watch(parts)
        with watch:
            scale.run()
        ratios = scale.ratios
    for part, samples in watch.samples.items():
        record(f"most memory of {part}", max(mib for _, mib in samples), "MiB")
    ratios["memory_million"] = max(mib for part in _BOUNDED for _, mib in watch.samples[part])
    return {
        "taken": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "jobs": jobs,
        "goals": {
            goal: {"goal": str(bound), "measured": ratios[goal], "met": bound.met(ratios[goal])}
            for goal, bound in SCALE_GOALS.items()
        },
        "results": results,
        "machine": machine.describe(),
        "memory": watch.samples,
    }


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw the memory of the processes over the time."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "girder_dask"  # the same results make the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, samples in report["memory"].items():
        axes.plot(*zip(*samples, strict=True), label=name)
    axes.set(xlabel="seconds", ylabel="resident memory in MiB", title=f"{report['jobs']:,} jobs")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    options = parser().parse_args(arguments)
    with stopping_on_signals():
        try:
            report = measure(options.jobs)
        except KeyboardInterrupt:
            print("Interrupted; nothing was written.", file=sys.stderr)
            return _INTERRUPTED
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "scale.json").write_text(json.dumps(report) + "\n")
    draw(report, options.output / "scale-memory.svg")
    for name, found in report["goals"].items():
        met = "met" if found["met"] else "MISSED"
        print(f"  {name} = {found['measured']:.4g} ({found['goal']}: {met})")
    print(f"The results are in {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
