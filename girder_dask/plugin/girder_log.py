"""Girder's log, without what signs requests.

CherryPy writes all headers of a request to Girder's log when the answer is 500, and the address of
each request. Here each record of the process is changed as it is made, so before any handler gets
it, of whichever logger, and whenever that handler was added.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from girder_dask.protocol.redaction import clean_headers

__all__ = ["clean", "install"]

_format = logging.Formatter().formatException

# The logger of requests, whose records hold the parameters apart.
_AUDIT_LOGGER = "girder_audit"

# Parameters of requests that are secrets, as the audit log has them.
_SECRET_PARAMETERS = frozenset({"token", "password", "old", "new", "key", "apikey", "authtoken"})


def install() -> None:
    """Change the records of this process from now on."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _Factory):
        logging.setLogRecordFactory(_Factory(make))
    audit = logging.getLogger(_AUDIT_LOGGER)
    if not any(isinstance(each, _AuditFilter) for each in audit.filters):
        audit.addFilter(_AuditFilter())


class _Factory:
    """Makes records that hold nothing that signs a request."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        with contextlib.suppress(Exception):  # of arguments that do not fit, logging tells
            clean(record)
        return record


def clean(record: logging.LogRecord) -> None:
    """Blank what signs requests in a record."""
    if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
        text = _format(record.exc_info)
        if (cleaned := clean_headers(text)) != text:
            record.exc_text = cleaned
    text = record.getMessage()
    if (cleaned := clean_headers(text)) == text:
        return
    # The formatter of an access log has use for the arguments.
    if isinstance(record.args, tuple):
        record.args = tuple(clean_headers(a) if isinstance(a, str) else a for a in record.args)
        text = record.getMessage()
    if clean_headers(text) != text:
        record.msg, record.args = cleaned, ()


class _AuditFilter(logging.Filter):
    """Blanks parameters in the records of Girder's audit log, which holds them apart."""

    def filter(self, record: logging.LogRecord) -> bool:
        details = getattr(record, "details", None)
        if isinstance(details, Mapping) and isinstance(details.get("params"), Mapping):
            params = {
                name: "***" if str(name).lower() in _SECRET_PARAMETERS else value
                for name, value in details["params"].items()
            }
            record.details = {**details, "params": params}
        return True
