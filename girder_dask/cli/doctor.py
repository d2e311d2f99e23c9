"""``girder-dask doctor``: checks of each link of the system, with remedies.

It first gathers facts from the scheduler, the workers, Girder and this process.
:func:`examine` derives the checks from the facts alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from girder_dask import config
from girder_dask.diagnostics import describe_process, girder_error

__all__ = ["Check", "Facts", "examine", "gather_facts", "run_doctor"]

_CONNECT_TIMEOUT_S = 3.0
_ANSWER_TIMEOUT_S = 20.0
_EXPIRY_WARNING_DAYS = 14.0


@dataclass(frozen=True, slots=True)
class Check:
    """The check of one link. ``problem`` is None if it works; ``remedy`` says how to repair it."""

    name: str
    detail: str = ""
    problem: str | None = None
    remedy: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the link works."""
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of all processes.

    ``scheduler`` is the answer of our hooks, or None without hooks. ``workers`` maps addresses to
    the facts of each worker, or None for a worker without our plugin. The errors say why a process
    could not be asked.
    """

    here: Mapping[str, Any]
    scheduler_address: str | None = None
    scheduler_error: str | None = None
    scheduler: Mapping[str, Any] | None = None
    workers: Mapping[str, Mapping[str, Any] | None] | None = None
    girder_url: str | None = None
    girder_error: str | None = None

    @property
    def girder(self) -> Mapping[str, Any] | None:
        """The facts that Girder gave the scheduler, or None."""
        return None if self.scheduler is None else self.scheduler.get("girder")


def run_doctor(api_url: str | None, scheduler: str | None, as_json: bool = False) -> int:
    """Check all links, print the checks, and return the exit code.

    Parameters
    ----------
    api_url
        Girder's REST API as this process reaches it, by default that of the scheduler.
    scheduler
        The address of the Dask scheduler, by default that of Dask's configuration.
    as_json
        Print one JSON document instead of lines.

    Returns
    -------
    int
        0 if all links work, else 1.
    """
    checks = list(examine(asyncio.run(gather_facts(api_url, scheduler))))
    if as_json:
        print(json.dumps([{"ok": check.ok, **asdict(check)} for check in checks], indent=2))
    else:
        for check in checks:
            print(_line(check))
        wrong = sum(not check.ok for check in checks)
        print(f"\n{wrong} of {len(checks)} links are broken." if wrong else "\nAll links work.")
    return 0 if all(check.ok for check in checks) else 1


def _line(check: Check) -> str:
    if check.ok:
        return f"ok      {check.name}{': ' + check.detail if check.detail else ''}"
    remedy = f"\n          → {check.remedy}" if check.remedy else ""
    return f"BROKEN  {check.name}: {check.problem}{remedy}"


async def gather_facts(api_url: str | None, scheduler: str | None) -> Facts:
    """Gather the facts of all processes that can be reached."""
    import dask.config

    address = scheduler or dask.config.get("scheduler-address", None)
    api_url = api_url or config.get("api-url")
    status, workers, error = None, None, "the address of the scheduler is not known"
    if address:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                status, workers = await _ask(address)
            error = ""
        except TimeoutError:
            error = f"it does not answer within {_ANSWER_TIMEOUT_S:.0f} s"
        except (OSError, ValueError) as e:
            error = str(e) or type(e).__name__
    if api_url is None and status is not None:
        api_url = status["api_url"]
    problem: str | None = "its address is not known here"
    if api_url is not None:
        problem = await asyncio.to_thread(
            girder_error, api_url, needs_plugin=False, timeout_s=_ANSWER_TIMEOUT_S
        )
    return Facts(
        here=await asyncio.to_thread(describe_process, None),
        scheduler_address=address,
        scheduler_error=error or None,
        scheduler=status,
        workers=workers,
        girder_url=api_url,
        girder_error=problem,
    )


async def _ask(
    address: str,
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any]]:
    from distributed import rpc
    from distributed.security import Security

    security = Security().get_connection_args("client")
    remote = rpc(address, timeout=_CONNECT_TIMEOUT_S, connection_args=security)
    try:
        identity = await remote.identity()
        status = await remote.girder_status()
        status = status if isinstance(status, dict) and "versions" in status else None
        told = (status or {}).get("girder") or {}
        message = {"op": "girder_facts", "api_url": told.get("worker_api_url")}
        answers = await remote.broadcast(msg=message, on_error="return")
    finally:
        remote.close_comms()
    known = identity["workers"]
    return status, {
        worker: answers[worker] if isinstance(answers.get(worker), dict) else None
        for worker in known
    }


def examine(facts: Facts) -> Iterator[Check]:
    """Yield a check for each link, in the order in which they depend on each other.

    Examples
    --------
    >>> facts = Facts(here={'versions': {}}, scheduler_error='refused', girder_error='refused')
    >>> [check.name for check in examine(facts) if not check.ok]
    ['Girder is reachable from here', 'The scheduler is reachable']
    """
    yield Check(
        "Girder is reachable from here",
        detail=facts.girder_url or "",
        problem=facts.girder_error,
        remedy="Start Girder, or give its REST API with --api-url http://HOST:PORT/api/v1.",
    )
    yield Check(
        "The scheduler is reachable",
        detail=facts.scheduler_address or "",
        problem=facts.scheduler_error,
        remedy="Start 'dask scheduler', or give its address with --scheduler tcp://HOST:PORT.",
    )
    if facts.scheduler_error is not None:
        return
    yield Check(
        "The scheduler has our hooks",
        problem=None if facts.scheduler else "it does not know girder_dask",
        remedy="Start it with --preload girder_dask.scheduler_hooks.",
    )
    if facts.scheduler is not None:
        yield from _examine_girder(facts, facts.scheduler)
    yield from _examine_workers(facts)
    yield from _examine_certificates(facts)
    yield from _examine_versions(facts)
    yield from _examine_tasks(facts)


def _examine_certificates(facts: Facts) -> Iterator[Check]:
    """Yield a check for the TLS certificates of each process that has some."""
    for process, its in _known(facts).items():
        certificates = its.get("certificates") or ()
        problems = []
        for certificate in certificates:
            days = float(certificate.get("days_left") or 0)
            if certificate.get("error"):
                problems.append(certificate["error"])
            elif days <= 0:
                problems.append(f"{certificate['file']} has expired")
            elif days < _EXPIRY_WARNING_DAYS:
                problems.append(f"{certificate['file']} expires in {days:.0f} days")
        if certificates:
            last = min((c.get("not_after") or "" for c in certificates), default="")
            yield Check(
                f"The TLS certificates of {process} are valid",
                detail=f"until {last[:10]}",
                problem="; ".join(problems) or None,
                remedy="Renew them with 'girder-dask certs renew DIRECTORY', and copy them over "
                "the old ones.",
            )


def _examine_girder(facts: Facts, scheduler: Mapping[str, Any]) -> Iterator[Check]:
    url = scheduler["api_url"]
    yield Check(
        "Girder is reachable from the scheduler, with its dask plugin",
        detail=url or "",
        problem=scheduler["girder_error"] if url else "girder.api-url is not set there",
        remedy="Set girder.api-url (DASK_GIRDER__API_URL) for the scheduler, and install "
        "girder_dask[girder] in Girder's environment.",
    )
    if scheduler["girder_error"] is None:  # otherwise it is unknown
        yield Check(
            "The scheduler's credential is valid",
            problem=scheduler["credential_error"],
            remedy="Create one with 'girder-dask credential --output FILE' and set "
            "girder.credential-file on the scheduler's host.",
        )
    yield Check(
        "Job updates reach Girder",
        detail=f"{scheduler['updates']} updates in {scheduler['requests']} requests",
        problem=scheduler["error"],
        remedy=f"Updates of {scheduler['waiting']} jobs wait and none is lost; look at Girder's "
        "log.",
    )
    yield Check(
        "The scheduler gets its jobs from Girder",
        problem=scheduler.get("claim_error"),
        remedy="Queued jobs do not run meanwhile; look at Girder's log.",
    )
    girder = facts.girder
    if girder is not None:
        yield _girder_knows_scheduler(girder, facts.scheduler_address)
        yield _girder_jobs_are_sound(girder)


def _girder_knows_scheduler(girder: Mapping[str, Any], address: str | None) -> Check:
    link = girder["scheduler"]
    problem = None
    if not link["address"]:
        problem = "Girder's setting dask.scheduler_address is empty"
    elif link["reachable"] is False:
        problem = link["error"]
    return Check(
        "Girder reaches the scheduler",
        detail=link["address"] or "",
        problem=problem,
        remedy=f"Set dask.scheduler_address in Girder to an address that it reaches ({address}?).",
    )


def _girder_jobs_are_sound(girder: Mapping[str, Any]) -> Check:
    aside = girder.get("set_aside") or {}
    number = aside.get("number", 0)
    return Check(
        "The documents of jobs in Girder are well-formed",
        problem=f"{number} malformed ones were quarantined in the last day. The last: "
        f"{aside.get('last')}"
        if number
        else None,
        remedy="These jobs were ended in ERROR; the others continue. Find out what writes such "
        "documents; Girder's log names each.",
    )


def _examine_workers(facts: Facts) -> Iterator[Check]:
    workers = facts.workers or {}
    yield Check(
        "There are workers",
        detail=f"{len(workers)}",
        problem=None if workers else "none has joined, so jobs stay queued",
        remedy=f"Start one with 'dask worker {facts.scheduler_address}'.",
    )
    for address, worker in workers.items():
        if worker is None:
            yield Check(
                f"Worker {address} runs jobs",
                problem="it does not know girder_dask",
                remedy="Install girder_dask in its environment, then restart it.",
            )
            continue
        yield Check(
            f"Worker {address} reaches Girder",
            detail=worker["api_url"] or "",
            problem=worker["girder_error"] if worker["api_url"] else "no setting has its address",
            remedy="Set girder.api-url (DASK_GIRDER__API_URL) for the scheduler, or for the worker "
            f"on {worker['hostname']} alone, to an address that the worker reaches. If neither is "
            "set, dask.api_url and core.server_root in Girder count.",
        )
        if worker.get("cache_error"):
            yield Check(f"Worker {address} keeps input files", problem=worker["cache_error"])
        if worker.get("no_directories"):
            yield Check(f"Jobs on worker {address} share a working directory", _directories(worker))


def _directories(worker: Mapping[str, Any]) -> str:
    """Return why the jobs of a worker share its working directory, and what to do."""
    return (
        f"its system refuses unshare(CLONE_FS) ({worker['no_directories']}). The directory is "
        "restored after each job. Allow the call in the seccomp profile of the container, or set "
        "girder.worker.isolation to process"
    )


def _known(facts: Facts) -> dict[str, Mapping[str, Any]]:
    """Return the facts of all processes that gave some, by a name of the process."""
    known = {"here": facts.here}
    if facts.scheduler is not None:
        known["scheduler"] = facts.scheduler
    if facts.girder is not None:
        known["Girder"] = facts.girder
    for address, worker in (facts.workers or {}).items():
        if worker is not None:
            known[f"worker {address}"] = worker
    return known


def _examine_versions(facts: Facts) -> Iterator[Check]:
    known = _known(facts)
    for name in facts.here["versions"]:
        found: dict[str, list[str]] = {}
        for process, its in known.items():
            found.setdefault(its["versions"].get(name, "not installed"), []).append(process)
        differ = "; ".join(f"{version} ({', '.join(ps)})" for version, ps in found.items())
        yield Check(
            f"The version of {name} is the same everywhere",
            detail=next(iter(found)),
            problem=differ if len(found) > 1 else None,
            remedy=f"Install the same {name} in each environment.",
        )


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
        missing, raising = [], []
        for address, worker in workers.items():
            here = {task["module"]: task for task in worker["tasks"]}.get(module)
            if here is None:
                missing.append(f"not installed on {address}")
            elif here["error"] is not None:
                raising.append(f"installed on {address}, but its import raises {here['error']}")
            elif here["package"] != package:
                missing.append(f"{here['package']} on {address}, {package} elsewhere")
        install = (
            f"Install {package or module} in the environment of those workers, then restart them."
        )
        correct = (
            f"Fix its import: \"python -c 'import {module}'\" in that environment shows the error."
        )
        remedies = [install] if missing or not raising else []
        if raising:
            remedies.append(correct)
        yield Check(
            f"The tasks of {module} are on every worker",
            detail=package or "",
            problem="; ".join(missing + raising) or None,
            remedy=" ".join(remedies),
        )
