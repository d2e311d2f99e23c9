"""The notification that a log has text to take."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection
from contextvars import Context

from girder_dask.worker.job_log import orphan_output

__all__ = ["TextNotifier"]


class TextNotifier:
    """Notifier that calls a function once when there is text, until some has been taken.

    Parameters
    ----------
    on_text
        The function. None for a log that its owner polls.

    Attributes
    ----------
    is_claimed
        Whether the function has been called, or is about to be, since text was taken.
    """

    def __init__(self, on_text: Callable[[], None] | None) -> None:
        self._on_text = on_text
        self.is_claimed = False

    def claim(self, text: Collection[str]) -> bool:
        """Return True if the caller must call :meth:`notify`. No other thread does then."""
        if self.is_claimed or not text:
            return False
        self.is_claimed = True
        return True

    def notify(self) -> None:
        """Call the function. The caller must hold no lock."""
        if self._on_text is None:
            return
        try:
            # Outside of the job's context, which everything that the call starts would inherit.
            Context().run(self._on_text)
        except Exception:  # noqa: BLE001 - not an error of the job's code
            orphan_output.write(traceback.format_exc())
