"""What came of an attempt of a job, and what is kept of that.

This is plain computation. What reads and writes is in :mod:`girder_dask.plugin.store.results`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from girder_dask.utils.text import shortened

__all__ = ["FIELD", "MOST_RESULT", "MOST_WITHIN", "Outcome"]

#: The field of a job document that holds what came of it, if that is small.
FIELD = "dask_outcome"

#: The most bytes that are kept in the job document.
MOST_WITHIN = 2 * 1024

#: The most bytes of a value, or of an exception, that are kept with a job, whatever
#: ``girder.worker.max-result`` is.
MOST_RESULT = 6 * 1024**2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt: a packed value, or one line and a packed exception."""

    attempt: int
    value: bytes | None = field(default=None, repr=False)
    error: str | None = None
    exception: bytes | None = field(default=None, repr=False)

    @property
    def is_small(self) -> bool:
        """Whether it is kept in the job document."""
        # A character takes up to four bytes.
        size = len(self.value or b"") + len(self.exception or b"") + 4 * len(self.error or "")
        return size <= MOST_WITHIN

    def document(self) -> dict[str, Any]:
        """Return what is kept of it, no more than a document holds."""
        value, error, exception = self.value, self.error, self.exception
        if value is not None and len(value) > MOST_RESULT:
            error = (
                f"it takes {len(value):,} bytes, more than the {MOST_RESULT:,} that Girder keeps"
            )
            value = None
        if exception is not None and len(exception) > MOST_RESULT:
            exception = None
        return {
            "result": value,
            "error": error if error is None else shortened(error),
            "exception": exception,
            "result_attempt": self.attempt,
        }
