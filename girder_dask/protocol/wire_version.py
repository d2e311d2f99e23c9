"""Version of the messages between processes, and which versions can be read.

A site is upgraded one process after the other, so messages of the previous and of the next version
can be read. A change that the previous version cannot read takes two versions: one that reads it,
and the next that writes it. New fields have defaults, and come after the others.
"""

from __future__ import annotations

__all__ = ["WIRE_VERSION", "IncompatibleVersion", "is_readable", "version_conflict"]

#: The version of the messages that this release writes.
WIRE_VERSION = 1

_MAX_DIFFERENCE = 1


class IncompatibleVersion(ValueError):
    """A message has a version that cannot be read here."""


def is_readable(version: object) -> bool:
    """Return True if messages of a version can be read here.

    >>> is_readable(WIRE_VERSION + 1), is_readable(WIRE_VERSION + 2), is_readable("1")
    (True, False, False)
    """
    is_number = isinstance(version, int) and not isinstance(version, bool)
    return is_number and abs(version - WIRE_VERSION) <= _MAX_DIFFERENCE  # type: ignore[operator]


def version_conflict(version: int, there: str, here: str) -> str | None:
    """Return why two processes cannot read each other's messages; None if they can.

    Parameters
    ----------
    version
        The version of the other process.
    there, here
        Where the other process is and where this one is, such as ``"on the scheduler"``.

    Examples
    --------
    >>> print(version_conflict(WIRE_VERSION + 2, 'on the scheduler', 'in Girder'))
    girder_dask has message version 3 on the scheduler and 1 in Girder, and only neighboring \
versions work together; upgrade girder_dask in Girder
    """
    if is_readable(version):
        return None
    older = here if version > WIRE_VERSION else there
    return (
        f"girder_dask has message version {version} {there} and {WIRE_VERSION} {here}, and only "
        f"neighboring versions work together; upgrade girder_dask {older}"
    )
