"""The examination of the facts of all processes: the checks of Girder and of the scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from girder_dask.cli.doctor.checks import Check
from girder_dask.cli.doctor.containers import examine_containers
from girder_dask.cli.doctor.facts import Facts
from girder_dask.cli.doctor.hosts import examine_hosts, is_loopback
from girder_dask.cli.doctor.workers import examine_workers

__all__ = ["examine"]

_ENCRYPTED_SCHEMES = {"tls", "wss", "inproc"}


def examine(facts: Facts) -> Iterator[Check]:
    """Yield a check for each link, in the order in which they depend on each other.

    Examples
    --------
    >>> from girder_dask.diagnostics import GirderAnswer
    >>> facts = Facts(here={'versions': {}}, scheduler_error='refused',
    ...               girder_answer=GirderAnswer('refused'))
    >>> [check.failure for check in examine(facts) if not check.ok]
    ['Girder is not reachable from here', 'The scheduler is not reachable']
    """
    answer = facts.girder_answer
    start = "Start Girder, or give its address with --api-url http://HOST:PORT/api/v1."
    yield Check(
        "Girder is reachable from here",
        "Girder is not reachable from here",
        detail=facts.girder_url or "",
        problem=answer.error,
        # The error says what to do about a certificate.
        remedy=None if answer.is_certificate_refused else start,
    )
    yield Check(
        "The scheduler is reachable",
        "The scheduler is not reachable",
        detail=facts.scheduler_address or "",
        problem=facts.scheduler_error,
        remedy="Start 'dask scheduler', or give its address with --scheduler tcp://HOST:PORT or "
        "tls://HOST:PORT. With TLS, Dask's configuration here needs the authority and a "
        "certificate (distributed.comm.tls).",
    )
    if facts.scheduler_error is not None:
        return
    yield Check(
        "The scheduler has our hooks",
        "The scheduler does not have our hooks",
        problem=None if facts.scheduler else "it does not know girder_dask, so jobs stay queued",
        remedy="Start it with --preload girder_dask.scheduler_hooks.",
    )
    if facts.scheduler is not None:
        yield _is_encrypted(facts, facts.scheduler)
        yield from _examine_girder(facts, facts.scheduler)
    yield from examine_workers(facts)
    yield from examine_containers(facts)
    yield from examine_hosts(facts)


def _is_encrypted(facts: Facts, scheduler: Mapping[str, Any]) -> Check:
    address = facts.listens_on or facts.scheduler_address or ""
    is_allowed = bool(scheduler.get("allow_insecure"))
    is_open = urlsplit(address).scheme not in _ENCRYPTED_SCHEMES and not is_loopback(address)
    return Check(
        "Connections to the scheduler are encrypted, or stay on its host",
        "Connections to the scheduler are not encrypted",
        detail=f"{address}{', as girder.security.allow-insecure allows' if is_allowed else ''}",
        problem=f"whoever reaches {address} can run code on the cluster"
        if is_open and not is_allowed
        else None,
        remedy="Use TLS between Dask's parts (distributed.comm.tls). In a closed network, set "
        "girder.security.allow-insecure on the scheduler.",
    )


def _examine_girder(facts: Facts, scheduler: Mapping[str, Any]) -> Iterator[Check]:
    url = scheduler["api_url"]
    yield Check(
        "Girder is reachable from the scheduler, with its dask plugin",
        "Girder with its dask plugin is not reachable from the scheduler",
        detail=url or "",
        problem=scheduler["girder_error"] if url else "girder.api-url is not set there",
        remedy="Set girder.api-url (DASK_GIRDER__API_URL) for the scheduler, and install "
        "girder_dask[girder] in Girder's environment.",
    )
    yield _is_own_girder(facts, scheduler)
    if scheduler["girder_error"] is None:  # otherwise it is unknown
        yield Check(
            "The scheduler's credential is valid",
            "The scheduler's credential is not valid",
            problem=scheduler["credential_error"],
            remedy="Create one with 'girder-dask credential --output FILE' and set "
            "girder.credential-file on the scheduler's host.",
        )
    file_problem = scheduler.get("credential_file_problem")
    yield Check(
        "Other accounts cannot read the scheduler's credential",
        "Other accounts can read the scheduler's credential",
        problem=file_problem,
        remedy=f"Run 'chmod 600 {str(file_problem).partition(' has mode ')[0]}' on the scheduler's "
        "host. If other people use that host, replace the credential ('girder-dask credential "
        "--revoke-others').",
    )
    yield from _examine_updates_and_claims(scheduler)
    girder = facts.girder
    if girder is not None:
        yield _girder_knows_scheduler(girder, facts.scheduler_address)
        yield _girder_jobs_are_sound(girder)
        yield from _examine_services(girder)


def _examine_updates_and_claims(scheduler: Mapping[str, Any]) -> Iterator[Check]:
    yield Check(
        "Job updates reach Girder",
        "Job updates do not reach Girder",
        detail=f"{scheduler['updates']} updates in {scheduler['requests']} requests",
        problem=scheduler["error"],
        remedy=f"Updates of {scheduler['waiting']} jobs wait and none is lost; look at Girder's "
        "log.",
    )
    yield Check(
        "The scheduler gets its jobs from Girder",
        "The scheduler does not get its jobs from Girder",
        problem=scheduler.get("claim_error"),
        remedy="Queued jobs do not run meanwhile; look at Girder's log.",
    )
    yield Check(
        "The scheduler leads",
        "The scheduler stands by",
        problem=f"the scheduler at {scheduler.get('leader')} runs the jobs of this Girder"
        if scheduler.get("leads") is False
        else None,
        remedy="If no other scheduler should run, stop that one. This one leads then.",
    )


def _is_own_girder(facts: Facts, scheduler: Mapping[str, Any]) -> Check:
    here, there = facts.girder_answer.site, scheduler.get("site")
    is_other = None not in (here, there) and here != there
    return Check(
        "This Girder is that of the scheduler",
        "This Girder is not that of the scheduler",
        problem=f"the scheduler runs the jobs of the Girder at {scheduler['api_url']}, so those of "
        f"{facts.girder_url} stay queued"
        if is_other
        else None,
        remedy="Correct girder.api-url (DASK_GIRDER__API_URL) and the credential of the scheduler, "
        "or give the address of its Girder with --api-url.",
    )


def _girder_knows_scheduler(girder: Mapping[str, Any], address: str | None) -> Check:
    link = girder["scheduler"]
    problem = None
    if not link["address"]:
        problem = "Girder's setting dask.scheduler_address is empty"
    elif link["reachable"] is False:
        problem = link["error"]
    return Check(
        "Girder reaches the scheduler",
        "Girder does not reach the scheduler",
        detail=link["address"] or "",
        problem=problem,
        remedy=f"Set dask.scheduler_address in Girder to an address that it reaches ({address}?).",
    )


def _girder_jobs_are_sound(girder: Mapping[str, Any]) -> Check:
    aside = girder.get("set_aside") or {}
    number = aside.get("number", 0)
    return Check(
        "The documents of jobs in Girder are well-formed",
        "Documents of jobs in Girder are malformed",
        problem=f"{number} malformed ones were quarantined in the last day. The last: "
        f"{aside.get('last')}"
        if number
        else None,
        remedy="These jobs were ended in ERROR; the others continue. Find out what writes such "
        "documents; Girder's log names each.",
    )


def _examine_services(girder: Mapping[str, Any]) -> Iterator[Check]:
    yield Check(
        "Girder has an assetstore",
        "Girder has no assetstore",
        problem=None if girder.get("has_assetstore", True) else "jobs cannot store their outputs",
        remedy="Create one in Girder's admin console, under Assetstores.",
    )
    yield Check(
        "Girder's Redis answers",
        "Girder's Redis does not answer",
        problem=girder.get("redis_error"),
        remedy="Jobs run all the same, but pages in browsers do not update by themselves. Start "
        "the Redis that GIRDER_NOTIFICATION_REDIS_URL names in Girder's environment.",
    )
