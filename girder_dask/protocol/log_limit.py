"""The limit of a job's log, and the lines that mark omitted output.

A log that reaches ``girder.max-log`` keeps its beginning and its end, so that a traceback is
always there. A worker applies the limit to the output of a run, Girder to that of all runs.
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
    """Return the log line that states how many bytes are left out before the end.

    >>> gap_line(7_000_000)
    '[7,000,000 bytes of the log are left out here.]\\n'
    """
    return f"[{nbytes:,} bytes of the log are left out here.]\n"
