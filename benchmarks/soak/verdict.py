"""What a soak has found: each job once, with one result and one set of outputs."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak.kinds import OUTPUTS, allowed_ends, value
from benchmarks.soak.load import Load
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.standalone.authority import tls_environment
from tests.support.ended_jobs import check_log, check_states, check_theirs, runs_in
from tests.support.fault_site import FaultStack

__all__ = ["Verdict", "all_jobs", "doctor", "judge"]

_RESULTS_AT_ONCE = 200
_LINES = 5
_LOG_END = 500


@dataclass
class Verdict:
    """The findings of a soak.

    Attributes
    ----------
    problems
        What is wrong, one sentence each.
    ends
        How many jobs of each kind have ended in which state.
    attempts
        How many jobs of each kind have needed how many attempts.
    """

    problems: list[str] = field(default_factory=list)
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    attempts: dict[str, Counter[int]] = field(default_factory=dict)

    def count(self, kind: str, job: dict[str, Any]) -> None:
        """Count a job."""
        end = JobStatus(job["status"]).name
        self.ends.setdefault(kind, Counter())[end] += 1
        self.attempts.setdefault(kind, Counter())[job["dask"].get("attempt", 0)] += 1


def all_jobs(stack: FaultStack) -> list[dict[str, Any]]:
    """Return the documents of all jobs of Dask, without their logs."""

    def load() -> list[dict[str, Any]]:
        from girder_jobs.models.job import Job

        fields = {"log": False, "kwargs": False}
        return list(Job().collection.find({"dask.task": {"$exists": True}}, fields))

    return list(stack.call(load))


def judge(stack: FaultStack, load: Load) -> Verdict:
    """Check all jobs of a load after the last has ended."""
    verdict = Verdict()
    named: dict[int, list[dict[str, Any]]] = {}
    for job in all_jobs(stack):
        number, _, kind = job["title"].partition(" ")
        if number.isdigit() and load.kinds.get(int(number)) == kind:
            named.setdefault(int(number), []).append(job)
        else:
            # The first job of a chain, and those of a map.
            _check_other(verdict, job)
    _check_calls(verdict, load, named)
    documents = {number: jobs[0] for number, jobs in sorted(named.items())}
    _check_each(verdict, stack, load, documents)
    _check_results(verdict, stack, load, documents)
    return verdict


def _check_other(verdict: Verdict, job: dict[str, Any]) -> None:
    verdict.count("part of a chain or map", job)
    if wrong := check_states(job):
        verdict.problems.append(f"{job['title']}, job {job['_id']}: {wrong}")


def _check_calls(verdict: Verdict, load: Load, named: dict[int, list[dict[str, Any]]]) -> None:
    """Check that each accepted call has one job, and any other at most one."""
    for number, jobs in named.items():
        if len(jobs) > 1:
            verdict.problems.append(f"There are {len(jobs)} jobs of call {number}.")
    for number, job_id in load.accepted.items():
        if [str(job["_id"]) for job in named.get(number, [])] != [job_id]:
            verdict.problems.append(f"The job {job_id} of call {number} is not there.")


def _check_each(
    verdict: Verdict, stack: FaultStack, load: Load, documents: dict[int, dict[str, Any]]
) -> None:
    """Check how each job has ended, its log, its runs and its outputs."""
    runs = runs_in(Path(load.places.tally))
    their_runs = runs_in(Path(load.places.their_tally))
    outputs = stack.outputs(load.places.outputs)
    for number, job in documents.items():
        kind, attempt = load.kinds[number], job["dask"].get("attempt", 0)
        verdict.count(kind, job)
        wrong = _check_end(kind, job)
        log = stack.log(str(job["_id"]))
        if kind.startswith("theirs"):
            name = "tally_late" if kind == "theirs late" else "tally_once"
            wrong += check_theirs(name, job, log, their_runs.get(number, []), _LINES)
        elif kind in OUTPUTS:
            wrong += check_log(log, attempt, _LINES)
            made = outputs.pop(f"out-{number}.txt", [])
            if made != [f"made by attempt {attempt}\n"]:
                wrong.append(f"its outputs are {made}")
        noted = runs.get(number, [])
        if len(set(noted)) < len(noted) or (kind == "once" and len(noted) > 1):
            wrong.append(f"its runs are those of the attempts {noted}")
        if wrong:
            told = f"{'; '.join(wrong)}; its log ends with {log[-_LOG_END:]!r}"
            verdict.problems.append(f"{job['title']}, job {job['_id']}: {told}")
    if outputs:
        verdict.problems.append(f"There are outputs of no job: {sorted(outputs)[:5]}.")


def _check_end(kind: str, job: dict[str, Any]) -> list[str]:
    end = JobStatus(job["status"])
    if end not in allowed_ends(kind):
        return [f"it is {end.name}"]
    if kind == "canceled":
        ends = [stamp["status"] for stamp in job["timestamps"] if stamp["status"] in FINAL]
        return [] if ends == [end] else [f"it has ended {len(ends)} times"]
    return check_states(job, end)


def _check_results(
    verdict: Verdict, stack: FaultStack, load: Load, documents: dict[int, dict[str, Any]]
) -> None:
    """Check what the jobs that have succeeded return."""

    def values(ids: list[str]) -> list[Any]:
        from girder_dask import JobResult

        return [JobResult(job_id).get(timeout=20) for job_id in ids]

    wanted = {
        number: value(load.kinds[number], number)
        for number, job in documents.items()
        if job["status"] == JobStatus.SUCCESS
    }
    checked = [number for number, expected in wanted.items() if expected is not None]
    for some in _batches(checked, _RESULTS_AT_ONCE):
        ids = [str(documents[number]["_id"]) for number in some]
        for number, found in zip(some, stack.call(values, ids), strict=True):
            if found != wanted[number]:
                verdict.problems.append(f"Call {number} has returned {found!r}.")


def _batches(numbers: list[int], size: int) -> Iterable[list[int]]:
    left = iter(numbers)
    while some := list(itertools.islice(left, size)):
        yield some


def doctor(stack: FaultStack) -> list[str]:
    """Return the checks of ``girder-dask doctor`` that fail."""
    files = stack.tls_files
    assert files is not None
    tls = tls_environment(Path(files["ca"]), Path(files["cert"]))
    command = ["doctor", "--json", "--api-url", stack.api, "--scheduler", stack.scheduler]
    done = subprocess.run(
        [sys.executable, "-m", "girder_dask.cli", *command],
        env={**os.environ, **tls},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode == 0:
        return []
    return [json.dumps(json.loads(done.stdout))[:4000] if done.stdout else done.stderr]
