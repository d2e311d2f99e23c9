"""The limit of a job's log: what workers and Girder write where output is left out.

Of a log that reaches ``girder.max-log``, the beginning is kept, and the end, so that a traceback
is always there. A worker applies the limit to the output of a run, Girder to that of all runs.
"""

from __future__ import annotations

__all__ = ["LOG_END_BYTES", "gap_line", "limit_line"]

#: How much of the end of a log is kept: bytes in Girder, characters in a worker.
LOG_END_BYTES = 64 * 1024


def limit_line(max_bytes: int) -> str:
    """Return the line of a log after the last output before the limit."""
    return (
        f"\n[This log has reached the {max_bytes:,} bytes that are kept of it "
        "(girder.max-log). Of what follows only the end is kept.]\n"
    )


def gap_line(nbytes: int) -> str:
    """Return the line of a log before its end, which tells how much is left out.

    >>> gap_line(7_000_000)
    '[7,000,000 bytes of the log are left out here.]\\n'
    """
    return f"[{nbytes:,} bytes of the log are left out here.]\n"
