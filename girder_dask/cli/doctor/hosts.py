"""Checks of the hosts of all processes: certificates, clocks, disks and versions."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from girder_dask.cli.doctor.checks import Check
from girder_dask.cli.doctor.facts import Facts

__all__ = ["examine_hosts", "is_loopback"]

_MAX_CLOCK_DIFFERENCE_S = 5.0
_MIN_CERTIFICATE_DAYS = 14.0
# A disk is nearly full if it is below both a share and a number of bytes, or below the other alone.
_LOW_SHARE, _LOW_BYTES, _TOO_FEW_BYTES = 0.05, 10 * 1024**3, 1024**3

_RENEW = "Renew them with 'girder-dask certs renew DIRECTORY', and copy them over the old ones."
# What an authority issues lives no longer than it.
_RENEW_AUTHORITY = (
    "Extend the authority with 'girder-dask certs renew --authority DIRECTORY', and copy its "
    "ca.pem to every host; then renew the others with 'girder-dask certs renew DIRECTORY', and "
    "copy them over the old ones."
)


def is_loopback(address: str) -> bool:
    """Return True if only processes of the same host reach an address, such as that of a URL."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def examine_hosts(facts: Facts) -> Iterator[Check]:
    """Yield the checks of certificates, clocks, disks and versions."""
    known = _known(facts)
    yield from _certificates_are_valid(known)
    if facts.https_days_left is not None:
        yield _https_is_valid(facts.https_days_left)
    yield _clocks_agree(facts, known)
    yield _disks_have_space(known)
    yield from _versions_agree(facts, known)


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


def _certificates_are_valid(known: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    for name, its in known.items():
        certificates = its.get("certificates") or ()
        refused = [(each, problem) for each in certificates if (problem := _problem_of(each))]
        if certificates:
            last = min((each.get("not_after") or "" for each in certificates), default="")
            yield Check(
                f"The TLS certificates of {name} are valid",
                f"The TLS certificates of {name} are not valid, or will soon not be",
                detail=f"until {last[:10]}",
                problem="; ".join(problem for _, problem in refused) or None,
                remedy=_RENEW_AUTHORITY
                if any(each.get("is_authority") for each, _ in refused)
                else _RENEW,
            )


def _https_is_valid(days_left: float) -> Check:
    return Check(
        "The certificate of Girder's https is valid",
        "The certificate of Girder's https will soon not be valid",
        detail=f"for {days_left:.0f} days",
        problem=f"it expires in {days_left:.0f} days"
        if days_left < _MIN_CERTIFICATE_DAYS
        else None,
        remedy="Renew it on the host that serves https. Users, workers and the scheduler refuse it "
        "then.",
    )


def _problem_of(certificate: Mapping[str, Any]) -> str | None:
    days = float(certificate.get("days_left") or 0)
    if certificate.get("error"):
        return str(certificate["error"])
    if days <= 0:
        return f"{certificate['file']} has expired"
    if days < _MIN_CERTIFICATE_DAYS:
        return f"{certificate['file']} expires in {days:.0f} days"
    return None


def _clocks_agree(facts: Facts, known: Mapping[str, Mapping[str, Any]]) -> Check:
    wrong = []
    for name, its in known.items():
        now = its.get("time")
        if now is None or name == "here":
            continue
        ahead = now - facts.answered if now > facts.answered else min(now - facts.asked, 0.0)
        if abs(ahead) > _MAX_CLOCK_DIFFERENCE_S:
            direction = "ahead of" if ahead > 0 else "behind"
            wrong.append(f"that of {name} is {abs(ahead):.0f} s {direction} the one here")
    return Check(
        "The clocks agree",
        "The clocks do not agree",
        problem="; ".join(wrong) or None,
        remedy="Synchronize the clocks of these hosts with NTP. Times of jobs are wrong meanwhile.",
    )


def _disks_have_space(known: Mapping[str, Mapping[str, Any]]) -> Check:
    full = [
        f"{disk['path']} of {name} has {disk['free'] / 1024**3:.1f} of "
        f"{disk['total'] / 1024**3:.0f} GiB left"
        for name, its in known.items()
        for disk in its.get("disks", ())
        if _is_nearly_full(disk["free"], disk["total"])
    ]
    return Check(
        "There is space on the disks",
        "A disk is nearly full",
        problem="; ".join(full) or None,
        remedy="Jobs fail when they cannot write. Free some space, or use another disk.",
    )


def _is_nearly_full(free: int, total: int) -> bool:
    return free < _TOO_FEW_BYTES or (free < _LOW_BYTES and free < _LOW_SHARE * total)


def _versions_agree(facts: Facts, known: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    for name in facts.here["versions"]:
        found: dict[str, list[str]] = {}
        for process, its in known.items():
            found.setdefault(its["versions"].get(name, "not installed"), []).append(process)
        differ = "; ".join(f"{version} ({', '.join(ps)})" for version, ps in found.items())
        yield Check(
            f"The version of {name} is the same everywhere",
            f"The version of {name} differs",
            detail=next(iter(found)),
            problem=differ if len(found) > 1 else None,
            remedy=f"Install the same {name} in each environment, then restart what runs another.",
        )
