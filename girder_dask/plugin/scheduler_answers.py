"""Checks of the scheduler's answers to the link, and what users are told when it takes no jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from girder_dask.protocol.wire_version import WIRE_VERSION, version_conflict

__all__ = ["IncompatibleScheduler", "check_answer", "refusal_reason"]


class IncompatibleScheduler(LookupError):
    """The messages of the scheduler cannot be read here."""


def check_answer(answer: Any, operation: str, site: Callable[[], str | None]) -> Mapping[str, Any]:
    """Return the answer to a remote procedure if it comes from a scheduler of this Girder.

    Raises
    ------
    LookupError
        Otherwise, with what to do.
    """
    if not isinstance(answer, Mapping):
        raise LookupError(
            f"it has no handler {operation}; preload girder_dask.scheduler_hooks there"
        )
    version = answer.get("version", WIRE_VERSION)
    conflict = version_conflict(version, "on the scheduler", "in Girder")
    if conflict is not None:
        raise IncompatibleScheduler(conflict)
    other = answer.get("site")  # unknown until it has claimed jobs
    if other is not None and other != site():
        raise LookupError(
            "it runs the jobs of another Girder; correct girder.api-url there, or "
            "dask.scheduler_address here"
        )
    return answer


def refusal_reason(address: str, error: Exception) -> str:
    """Return for users why the scheduler takes no jobs."""
    if isinstance(error, IncompatibleScheduler):
        return str(error)
    if isinstance(error, OSError):  # TimeoutError is one
        return f"Girder does not reach the Dask scheduler at {address}"
    return f"the Dask scheduler at {address} does not take jobs of this Girder"
