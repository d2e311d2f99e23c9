"""Checks of the workers: whether they run jobs, reach Girder, and have the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from girder_dask.cli.doctor.checks import Check
from girder_dask.cli.doctor.facts import Facts
from girder_dask.cli.doctor.hosts import is_loopback

__all__ = ["examine_workers"]


def examine_workers(facts: Facts) -> Iterator[Check]:
    """Yield the checks of the workers and of the tasks on them."""
    workers = facts.workers or {}
    yield Check(
        "There are workers",
        "There are no workers",
        detail=f"{len(workers)}",
        problem=None if workers else "none has joined, so jobs stay queued",
        remedy=f"Start one with 'dask worker {facts.scheduler_address}'.",
    )
    for address, worker in workers.items():
        if address in facts.worker_errors:
            yield Check(
                f"Worker {address} can be examined",
                f"Worker {address} cannot be examined",
                problem=facts.worker_errors[address],
                remedy="Its log has the error.",
            )
        elif worker is None:
            yield Check(
                f"Worker {address} runs jobs",
                f"Worker {address} runs no jobs",
                problem="it does not know girder_dask",
                remedy="Install girder_dask in its environment, then restart it.",
            )
        else:
            yield from _examine_worker(facts, address, worker)
    if workers:
        yield from _examine_tasks(facts)


def _examine_worker(facts: Facts, address: str, worker: Mapping[str, Any]) -> Iterator[Check]:
    yield Check(
        f"Worker {address} reaches Girder",
        f"Worker {address} does not reach Girder",
        detail=worker["api_url"] or "",
        problem=_girder_problem(facts, worker),
        remedy="Set girder.api-url (DASK_GIRDER__API_URL) for the scheduler, or for the worker "
        f"on {worker['hostname']} alone, to an address that the worker reaches. If neither is "
        "set, dask.api_url and core.server_root in Girder count.",
    )
    yield Check(
        f"Worker {address} keeps input files",
        f"Worker {address} does not keep input files",
        problem=worker.get("cache_error"),
    )
    yield _is_http_server_closed(facts, address, worker)
    reason = worker.get("no_directories")
    if reason:  # nothing is broken
        yield Check(
            f"Jobs on worker {address} share a working directory",
            f"Jobs on worker {address} have no working directory",
            detail=f"its system refuses unshare(CLONE_FS) ({reason}). The directory is restored "
            "after each job. Allow the call in the seccomp profile of the container, or set "
            "girder.worker.isolation to process",
        )


def _is_http_server_closed(facts: Facts, address: str, worker: Mapping[str, Any]) -> Check:
    is_allowed = bool((facts.scheduler or {}).get("allow_insecure"))
    served = worker.get("http_addresses") or []
    opened = [each for each in served if not is_loopback(f"http://{each}")]
    return Check(
        f"The HTTP server of worker {address} is closed to other hosts",
        f"The HTTP server of worker {address} is open to other hosts",
        detail=", ".join(served)
        + (", as girder.security.allow-insecure allows" if opened and is_allowed else ""),
        problem=f"whoever reaches {', '.join(opened)} can read its /status and /metrics without a "
        "certificate"
        if opened and not is_allowed
        else None,
        remedy="Start it with --dashboard-address 127.0.0.1:0. In a closed network, set "
        "girder.security.allow-insecure on the scheduler.",
    )


def _girder_problem(facts: Facts, worker: Mapping[str, Any]) -> str | None:
    url = worker["api_url"]
    if not url:
        return "no setting has its address"
    scheduler = facts.scheduler or {}
    error, site, own = worker["girder_error"], worker.get("site"), scheduler.get("site")
    if error is None and None not in (site, own) and site != own:
        error = f"the Girder at {url} is not that of the scheduler ({scheduler['api_url']})"
    if error is None:
        return None
    path, usual = urlsplit(url).path, urlsplit(scheduler.get("api_url") or url).path
    if path != usual:
        told = str(error).rstrip(".")
        return f"{told}. The path of its address is {path}, and {usual} at the scheduler"
    return str(error)


def _examine_tasks(facts: Facts) -> Iterator[Check]:
    workers = {a: w for a, w in (facts.workers or {}).items() if w is not None}
    packages = {
        task["module"]: task["package"]
        for its in (
            *workers.values(),
            facts.girder or {},
        )  # Girder's last, so that its versions count
        for task in its.get("tasks", ())
    }
    for module, package in sorted(packages.items()):
        found = {
            address: {task["module"]: task for task in worker["tasks"]}.get(module)
            for address, worker in workers.items()
        }
        yield _tasks_are_installed(module, package, found)
        yield _tasks_are_importable(module, found, facts.girder or {})


def _tasks_are_installed(
    module: str, package: str | None, found: Mapping[str, Mapping[str, Any] | None]
) -> Check:
    missing = []
    for address, task in found.items():
        if task is None:
            missing.append(f"not installed on {address}")
        elif task["package"] != package:
            missing.append(f"{task['package']} on {address}, {package} elsewhere")
    return Check(
        f"The tasks of {module} are on every worker",
        f"The tasks of {module} are not on every worker",
        detail=package or "",
        problem="; ".join(missing) or None,
        remedy=f"Install {package or module} in the environment of those workers, then restart "
        "them.",
    )


def _tasks_are_importable(
    module: str, found: Mapping[str, Mapping[str, Any] | None], girder: Mapping[str, Any]
) -> Check:
    processes = {f"on {address}": task for address, task in found.items()}
    processes["in Girder"] = next((t for t in girder.get("tasks", ()) if t["module"] == module), {})
    raising = [
        f"{where}: {task['error']}"
        for where, task in processes.items()
        if task and task["error"] is not None
    ]
    return Check(
        f"The tasks of {module} can be imported",
        f"The tasks of {module} cannot be imported",
        problem="; ".join(raising) or None,
        remedy=f"Correct the package or its environment: \"python -c 'import {module}'\" there "
        "shows the whole error. Then restart the process.",
    )
