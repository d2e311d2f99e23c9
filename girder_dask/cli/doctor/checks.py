"""Checks of ``girder-dask doctor``: what is checked, what is wrong, and how to repair it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check"]


@dataclass(frozen=True, slots=True)
class Check:
    """The check of one link.

    Attributes
    ----------
    name
        What holds if the check succeeds, as a sentence.
    failure
        What holds otherwise.
    detail
        More about a link that works.
    problem
        Why it does not work, or None if it works.
    remedy
        How to repair it. The problem may say so itself.
    """

    name: str
    failure: str
    detail: str = ""
    problem: str | None = None
    remedy: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the link works."""
        return self.problem is None
