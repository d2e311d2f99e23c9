"""The notification that a log has text to take."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection
from contextvars import Context

from girder_dask.worker.job_log import orphan_output

__all__ = ["TextNotifier"]


class TextNotifier:
    """Calls a function once when there is text, until some has been taken.

    Parameters
    ----------
    on_text
        The function. None for a log whose owner looks by itself.

    Attributes
    ----------
    is_claimed
        Whether the function has been called, or is about to be, since text was taken.
    """

    def __init__(self, on_text: Callable[[], None] | None) -> None:
        self._on_text = on_text
        self.is_claimed = False

    def claim(self, text: Collection[str]) -> bool:
        """Return True if the caller has to call :meth:`notify`, which no other thread does then."""
        if self.is_claimed or not text:
            return False
        self.is_claimed = True
        return True

    def notify(self) -> None:
        """Call the function. To be called without a lock."""
        if self._on_text is None:
            return
        try:
            # Not in the job's context, which would follow whatever the call sets going.
            Context().run(self._on_text)
        except Exception:  # noqa: BLE001 - it is not an error of the code of the job
            orphan_output.write(traceback.format_exc())
