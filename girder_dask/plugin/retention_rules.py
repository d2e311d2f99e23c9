"""Rules of retention: what is deleted of which jobs, and how long after their end."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from girder_dask.protocol.patterns import explain_mismatch

__all__ = ["MalformedRules", "RetentionRule", "read_rules"]

Part = Literal["jobs", "logs", "artifacts", "results"]
State = Literal["SUCCESS", "ERROR", "CANCELED"]

_MAX_RULES = 100
_MAX_NAMES = 1_000
_Names = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=_MAX_NAMES)]


class MalformedRules(ValueError):
    """A value that is no list of rules."""


class RetentionRule(Struct, frozen=True, forbid_unknown_fields=True):
    """A rule of retention.

    Attributes
    ----------
    delete
        What is deleted: whole ``jobs``, or only their ``logs``, ``artifacts`` or ``results``.
    days
        How many days after the last change of a job.
    states
        The final states of the jobs.
    types
        The types of the jobs. None: all.
    owners
        The logins of the owners of the jobs. None: all.
    """

    delete: Part
    days: Annotated[float, Meta(ge=0.0, le=36_500.0)]
    states: tuple[State, ...] = ("SUCCESS", "ERROR", "CANCELED")
    types: _Names | None = None
    owners: _Names | None = None


_Rules = Annotated[list[RetentionRule], Meta(max_length=_MAX_RULES)]


def read_rules(value: Any) -> list[RetentionRule]:
    """Return the rules of a setting.

    Raises
    ------
    MalformedRules
        If it is no list of rules.

    Examples
    --------
    >>> read_rules([{"delete": "logs", "days": 90}])[0].days
    90.0
    """
    try:
        rules: list[RetentionRule] = msgspec.convert(value, _Rules)
    except msgspec.ValidationError as e:
        raise MalformedRules(explain_mismatch(e)) from e
    return rules
