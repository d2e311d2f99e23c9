"""Checks of container engines: which workers have one, and whether jobs need one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from girder_dask.cli.doctor.checks import Check
from girder_dask.cli.doctor.facts import Facts

__all__ = ["examine_containers"]

_MAX_NAMED = 5


def examine_containers(facts: Facts) -> Iterator[Check]:
    """Yield the checks of container engines. Workers of older versions do not report theirs."""
    engines = {
        address: worker["containers"]
        for address, worker in (facts.workers or {}).items()
        if worker is not None and worker.get("containers")
    }
    for address, engine in engines.items():
        if engine["expected"]:
            yield Check(
                f"The container engine of worker {address} answers",
                f"The container engine of worker {address} does not answer",
                detail=engine["name"] or "",
                problem=engine["problem"],
                remedy="Start the engine there, and let the account of the worker use it. Without "
                "containers, set girder.docker.engine to none.",
            )
    if engines:
        yield _have_engines(engines, int((facts.girder or {}).get("container_jobs") or 0))


def _have_engines(engines: Mapping[str, Mapping[str, Any]], jobs: int) -> Check:
    having = [f"{its['name']} on {address}" for address, its in engines.items() if its["name"]]
    lacking = [address for address, its in engines.items() if not its["name"]]
    problem = None
    if jobs and lacking:
        which = f"{_listed(lacking)} {'has' if len(lacking) == 1 else 'have'} none"
        reason = f"{engines[lacking[0]]['problem']:.400}"
        need = "job needs" if jobs == 1 else "jobs need"
        problem = f"{jobs} unfinished {need} one, and {which}: {reason}"
    detail = _listed(having) or "no worker has one, and no job needs one"
    if having and lacking:
        detail += f"; none on {_listed(lacking)}"
    return Check(
        "The workers have the container engines that jobs need",
        "Not all workers have a container engine",
        detail=detail,
        problem=problem,
        remedy="Repair that, or keep container jobs on the other workers: start those with "
        "--resources containers=THREADS, and the jobs with resources={'containers': 1} (tasks of "
        "girder_worker: with a queue).",
    )


def _listed(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
