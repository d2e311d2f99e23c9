"""Limits of requests that start jobs, on both of their sides."""

from __future__ import annotations

__all__ = ["MAX_JOBS_PER_REQUEST", "MAX_REQUEST_BYTES", "PIECE_BYTES", "PIECE_JOBS"]

#: The most jobs that Girder records for one request.
MAX_JOBS_PER_REQUEST = 10_000
#: The most bytes of packed calls in a request. Girder reads 64 MiB; base64 adds a third.
MAX_REQUEST_BYTES = 47 * 1024**2

#: The most jobs of a map that are recorded at once, and the most bytes of their packed calls. Only
#: a single call may be larger.
PIECE_JOBS = 1_000
PIECE_BYTES = 8 * 1024**2
