"""How long one job takes on an idle system: ``python -m benchmarks.latency``.

Starts the embedded stack, runs a task that does nothing in a request of Girder, and
measures from the call of ``delay()`` to SUCCESS in MongoDB, one job after another. As a
yardstick it measures, in the same run, one task on the same scheduler without Girder.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

from girder_dask.testing.stack import TestStack

RESULTS = Path(__file__).parent / "results"


def measure_jobs(rounds: int) -> list[float]:
    """Return the seconds from ``delay()`` to SUCCESS in MongoDB. Runs inside Girder."""
    import time

    from bson import ObjectId
    from girder_jobs.models.job import Job
    from my_worker_tasks import noop

    jobs = Job().collection
    seconds = []
    for _ in range(rounds):
        time.sleep(0.3)  # idle again
        start = time.perf_counter()
        job_id = ObjectId(noop.delay().id)
        while jobs.find_one({"_id": job_id}, {"status": 1})["status"] != 3:
            time.sleep(0.0005)
        seconds.append(time.perf_counter() - start)
    return seconds


def measure_dask(scheduler: str, rounds: int) -> list[float]:
    """Return the seconds of one task that does nothing, on Dask alone."""
    import time

    from distributed import Client

    seconds = []
    with Client(scheduler, set_as_default=False) as client:
        for _ in range(rounds):
            time.sleep(0.3)
            start = time.perf_counter()
            client.submit(int, pure=False).result()
            seconds.append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Return median, 95th percentile and extremes, in milliseconds."""
    ms = sorted(1000 * s for s in seconds)
    return {
        "p50_ms": round(statistics.median(ms), 2),
        "p95_ms": round(ms[int(0.95 * (len(ms) - 1))], 2),
        "min_ms": round(ms[0], 2),
        "max_ms": round(ms[-1], 2),
        "rounds": len(ms),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    with (
        tempfile.TemporaryDirectory(prefix="girder-dask-bench-") as directory,
        TestStack(Path(directory)) as stack,
    ):
        stack.call(measure_jobs, 5)  # warm
        results: dict[str, Any] = {
            "job": summary(stack.call(measure_jobs, rounds)),
            "dask_task": summary(measure_dask(stack.scheduler, rounds)),
        }
    results["machine"] = {"cpu": platform.processor(), "python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latency.json").write_text(json.dumps(results, indent=2) + "\n")
    print("| case | p50 ms | p95 ms | min ms | max ms | rounds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, row in results.items():
        if "p50_ms" in row:
            print(f"| {name} | {' | '.join(str(v) for v in row.values())} |")


if __name__ == "__main__":
    main()
