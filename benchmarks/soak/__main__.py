"""Run a site for an hour with jobs of all kinds, while its operator works on it.

Workers come and go, one release follows another part by part, the credential and the
certificates are renewed, and Prometheus scrapes. Then each job must have ended once, with one
result and one set of outputs, and no memory may have grown. The findings are in ``soak.json``,
with plots.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks import report as results
from benchmarks.soak import report
from benchmarks.soak.load import Load
from benchmarks.soak.operations import OLD_RELEASE, Operator, plan
from benchmarks.soak.verdict import Verdict, all_jobs, doctor, judge
from benchmarks.soak.watch import MemoryWatch, growths
from girder_dask.celery import BROKER_URL
from girder_dask.jobs import FINAL
from girder_dask.standalone.launcher import stopping_on_signals
from tests.support.fault_site import FaultStack, until
from tests.support.metrics_site import metrics_key
from tests.support.prometheus import Prometheus, scraping, write_files

_WORKERS = 3
_THREADS = 2
_SAMPLES = 1200
# Of the last job, when no new ones come any more.
_DRAIN_S = 300.0
_LATE_S = 10.0
_PARTS = 2
# A Girder that ends loses the counts of the last seconds, and it is restarted twice. The rate at
# which jobs end varies.
_GIRDER_ENDS, _UNSTORED_S, _PEAK = 2, 5.0, 3
_ENV = {
    **OLD_RELEASE,
    # A job may lose more workers here than in a year of its life.
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1000",
    "DASK_GIRDER__SCHEDULER__LEAVE_GRACE": "10s",
    "GIRDER_WORKER_BROKER": BROKER_URL,
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    made.add_argument("--minutes", type=float, default=60.0, help="how long jobs are started")
    made.add_argument("--rate", type=float, default=2.0, help="calls in a second")
    made.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the plan")
    made.add_argument(
        "--output", type=Path, default=results.MEASURED / "soak", help="directory for the results"
    )
    return made


def main(arguments: argparse.Namespace) -> int:
    """Run, write the report, and return the exit code."""
    seconds = arguments.minutes * 60
    print(f"seed {arguments.seed}")
    with ExitStack() as exits:
        exits.enter_context(stopping_on_signals())
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="gd-soak-")))
        stack = FaultStack(directory / "stack", _WORKERS, _THREADS, tls=True, env=_ENV)
        exits.enter_context(stack)
        folder = write_files(stack, directory, metrics_key(stack))
        prometheus = exits.enter_context(scraping(folder))
        load = Load(stack, directory / "runs", arguments.rate, arguments.seed)
        watch = MemoryWatch(stack, max(0.5, seconds / _SAMPLES))
        operator = Operator(stack, seconds)
        begun = time.time()
        with watch.running():
            problems = _run(load, operator, seconds, arguments.seed)
            problems += _drain(stack, load, operator)
        verdict = judge(stack, load)
        verdict.problems += [*problems, *load.errors[:20]]
        verdict.problems += [f"doctor: {each}" for each in doctor(stack)]
        found = _report(arguments, load, operator, watch, verdict)
        found |= _scraped(prometheus, begun, time.time(), verdict, all_jobs(stack))
        found["problems"] = verdict.problems
        report.write(found, arguments.output)
        if verdict.problems:
            print(stack.recent_logs(20))
    return _summarize(found, arguments.output)


def _run(load: Load, operator: Operator, seconds: float, seed: int) -> list[str]:
    """Start jobs for some time while the operator works; return what went wrong."""
    problems = []
    begun = time.monotonic()
    with load.running():
        for operation in plan(seconds, seed, _WORKERS):
            now = time.monotonic() - begun
            if operation.is_routine and now > operation.at + _LATE_S:
                continue
            time.sleep(max(0.0, operation.at - now))
            try:
                operator.repair()
                operator.do(operation)
            except Exception as e:  # noqa: BLE001 - the load goes on, and the report has it
                problems.append(f"{operation.name}: {e!r}")
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
    operator.note("no more jobs are started")
    return problems


def _drain(stack: FaultStack, load: Load, operator: Operator) -> list[str]:
    """Wait until all jobs have ended; return what went wrong."""
    operator.repair()
    load.cancel_rest()
    try:
        until(lambda: all(job["status"] in FINAL for job in all_jobs(stack)), _DRAIN_S, 1)
    except AssertionError:
        left = [job["title"] for job in all_jobs(stack) if job["status"] not in FINAL]
        return [f"These jobs have not ended: {left[:20]}"]
    operator.note("all jobs have ended")
    return []


def _report(
    arguments: argparse.Namespace,
    load: Load,
    operator: Operator,
    watch: MemoryWatch,
    verdict: Verdict,
) -> dict[str, Any]:
    found = growths(watch.samples)
    verdict.problems += [f"The memory of {g.part} grows: {g}" for g in found if not g.is_steady]
    if len(found) < _PARTS:
        verdict.problems.append("There are too few samples of memory.")
    return {
        "minutes": arguments.minutes,
        "rate": arguments.rate,
        "seed": arguments.seed,
        "machine": machine.describe(),
        "taken": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "calls": len(load.kinds),
        "accepted": len(load.accepted),
        "ends": verdict.ends,
        "attempts": verdict.attempts,
        "growth": [each.as_dict() for each in found],
        "diary": operator.diary,
        "operations": operator.marks,
        "memory": watch.samples,
    }


def _scraped(
    prometheus: Prometheus,
    begun: float,
    ended: float,
    verdict: Verdict,
    jobs: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return what Prometheus has, and compare it with the jobs that are there."""
    window = f"[{int(ended - begun)}s]"
    up = {
        each["metric"]["job"]: round(float(each["value"][1]), 4)
        for each in prometheus.query(f"avg_over_time(up{window})")
    }
    ends = "sum(girder_dask_jobs_ended_total)"
    # The job that stands for a map runs nowhere, and is in no count.
    counted = sum("group" not in job["dask"] for job in jobs)
    with suppress(AssertionError):
        until(lambda: prometheus.value(ends) >= counted, 30, 1)
    lost = counted - round(prometheus.value(ends))
    if lost < 0:
        verdict.problems.append(f"Prometheus has {-lost} ends more than there are jobs.")
    if lost > _GIRDER_ENDS * _UNSTORED_S * _PEAK * counted / (ended - begun):
        verdict.problems.append(f"Prometheus lacks the ends of {lost} of {counted} jobs.")
    alarms = prometheus.query(f'max_over_time(ALERTS{{alertstate="firing"}}{window})')
    return {
        "jobs": len(jobs),
        "ends that Prometheus lacks": lost,
        "up": up,
        "alarms": sorted({each["metric"]["alertname"] for each in alarms}),
        "series": report.series(prometheus, begun, ended),
    }


def _summarize(found: dict[str, Any], directory: Path) -> int:
    """Print the findings, and return the exit code."""
    print(f"{found['calls']} calls, {found['accepted']} accepted; {found['jobs']} jobs")
    for kind, ends in sorted(found["ends"].items()):
        attempts = dict(sorted(found["attempts"][kind].items()))
        print(f"  {kind}: {dict(ends)}, by attempts {attempts}")
    for each in found["growth"]:
        print("  {part}: {early} to {late} MiB, at most {most}, in {minutes} min".format(**each))
    print(f"  answered Prometheus: {found['up']}; alarms: {found['alarms']}")
    print(*found["problems"], sep="\n")
    print(f"{len(found['problems'])} problems. The report is in {directory}.")
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(parser().parse_args()))
