"""What is wrong with jobs that have ended, where parts of their stack were killed meanwhile."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from girder_dask.jobs import FINAL, JobStatus, can_follow
from tests.support.fault_site import states

__all__ = ["check_log", "check_states", "check_theirs", "runs_in"]


def runs_in(path: Path) -> dict[int, list[str]]:
    """Return the runs that tasks have noted in a file, by the numbers of their calls."""
    found: dict[int, list[str]] = {}
    for line in path.read_text().splitlines():
        number, run, *_ = line.split()
        found.setdefault(int(number), []).append(run)
    return found


def check_theirs(
    name: str, job: dict[str, Any], log: str, runs: list[str], lines: int
) -> list[str]:
    """Return what is wrong with a job of ``tally_once`` or ``tally_late`` of girder_worker.

    A whole run has so many ``lines``.
    """
    told = {
        run: [int(n) for n in re.findall(rf"^run {run} line (\d+)$", log, re.MULTILINE)]
        for run in runs
    }
    wrong = [
        f"run {run} has the lines {found}"
        for run, found in told.items()
        if found != list(range(len(found)))
    ]
    if name == "tally_once" and len(runs) > 1:
        wrong.append(f"it ran {len(runs)} times")
    if name == "tally_once" and job["status"] == JobStatus.ERROR:
        if "The task may run at most once" not in log:
            wrong.append("it does not say why it has failed")
        return [*wrong, *check_states(job, JobStatus.ERROR)]
    if not any(len(found) == lines for found in told.values()):
        wrong.append(f"no run is whole: {told}")
    return [*wrong, *check_states(job)]


def check_states(job: dict[str, Any], end: JobStatus = JobStatus.SUCCESS) -> list[str]:
    """Return what is wrong with the states of a job: it ends once, as it should."""
    stamps = job["timestamps"]
    ends = [stamp["status"] for stamp in stamps if stamp["status"] in FINAL]
    legal = all(can_follow(a["status"], b["status"]) for a, b in itertools.pairwise(stamps))
    if legal and ends == [end] == [job["status"]]:
        return []
    return [f"its states are {states(job)}"]


def check_log(log: str, last: int, lines: int) -> list[str]:
    """Return what is wrong with the log of a job of ``tally``, each run of which has ``lines``.

    The last attempt has all lines. One that was lost has the first of them: what came after
    may have died with the worker, but none is missing in between, and none is there twice.
    """
    wrong = []
    for attempt in range(1, last + 1):
        found = [int(n) for n in re.findall(rf"^attempt {attempt} line (\d+)$", log, re.MULTILINE)]
        wanted = lines if attempt == last else len(found)
        if found != list(range(wanted)):
            wrong.append(f"attempt {attempt} has the lines {found}")
    told = sorted({int(n) for n in re.findall(r"^attempt (\d+) line", log, re.MULTILINE)})
    if told and told[-1] > last:
        wrong.append(f"it has lines of attempt {told[-1]}, after the last")
    return wrong
