"""Log messages about an error that persists: one when it begins or changes, one when it is over."""

from __future__ import annotations

import contextlib
import logging

from girder_dask.errors import GirderDaskError

__all__ = ["ErrorLog", "describe"]


def describe(error: BaseException) -> str:
    """Return an error in one line. Our own errors are sentences; others need their type.

    >>> describe(KeyError('coins')), describe(GirderDaskError('There are no coins.'))
    ("KeyError: 'coins'", 'There are no coins.')
    """
    kind = type(error).__name__
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the class of the error may be foreign
        return kind
    return text if text and isinstance(error, GirderDaskError) else f"{kind}: {text}"


class ErrorLog:
    """Logs an error once until it changes, and once when it is over.

    Neither the text of an error nor a handler that fails raises anything here.

    Parameters
    ----------
    logger
        The logger of the module that meets the errors.
    expected
        Errors that an outage causes: they are logged as warnings without a traceback, all others
        as errors with one.

    Examples
    --------
    >>> errors = ErrorLog(logging.getLogger('example'), expected=(OSError,))
    >>> errors.failed(OSError('no route'), 'The queue cannot be read: %s')
    >>> errors.error
    'OSError: no route'
    >>> errors.recovered('The queue can be read again')
    >>> errors.error is None
    True
    """

    def __init__(
        self, logger: logging.Logger, *, expected: tuple[type[Exception], ...] = ()
    ) -> None:
        self._logger = logger
        self._expected = expected
        #: The last error, described in one line. None after a success.
        self.error: str | None = None

    def failed(self, error: Exception, message: str, *args: object) -> None:
        """Log an error unless the last one was the same.

        Parameters
        ----------
        error
            The error.
        message
            A format of :mod:`logging`. Its last ``%s`` is the error.
        args
            The values that the message formats before the error.
        """
        before, self.error = self.error, describe(error)
        if self.error == before:
            return
        is_expected = isinstance(error, self._expected)
        with contextlib.suppress(Exception):
            self._logger.log(
                logging.WARNING if is_expected else logging.ERROR,
                message,
                *args,
                self.error,
                exc_info=None if is_expected else error,
            )

    def recovered(self, message: str | None = None, *args: object) -> None:
        """Record a success, and log it with a message if there was an error before."""
        before, self.error = self.error, None
        if before is not None and message is not None:
            with contextlib.suppress(Exception):
                self._logger.info(message, *args)
