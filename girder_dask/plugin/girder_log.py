"""Redaction of tokens and passwords in Girder's log.

CherryPy logs the address of each request, and all headers of a request that it answers with 500.
A log record factory redacts each record of the process when it is created, before any handler of
any logger receives it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from girder_dask.protocol.redaction import clean_headers

__all__ = ["clean", "install"]

_format = logging.Formatter().formatException

# The logger of requests. Its records have the parameters in a field of their own.
_AUDIT_LOGGER = "girder_audit"

# Secret parameters of requests, in the audit log's spelling.
_SECRET_PARAMETERS = frozenset({"token", "password", "old", "new", "key", "apikey", "authtoken"})


def install() -> None:
    """Redact the log records of this process from now on."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _Factory):
        logging.setLogRecordFactory(_Factory(make))
    audit = logging.getLogger(_AUDIT_LOGGER)
    if not any(isinstance(each, _AuditFilter) for each in audit.filters):
        audit.addFilter(_AuditFilter())


class _Factory:
    """A log record factory that redacts what authenticates a request."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        with contextlib.suppress(Exception):  # logging itself reports arguments that do not fit
            clean(record)
        return record


def clean(record: logging.LogRecord) -> None:
    """Redact what authenticates a request in a record."""
    if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
        text = _format(record.exc_info)
        if (cleaned := clean_headers(text)) != text:
            record.exc_text = cleaned
    text = record.getMessage()
    if (cleaned := clean_headers(text)) == text:
        return
    # The formatter of an access log uses the arguments.
    if isinstance(record.args, tuple):
        record.args = tuple(clean_headers(a) if isinstance(a, str) else a for a in record.args)
        text = record.getMessage()
    if clean_headers(text) != text:
        record.msg, record.args = cleaned, ()


class _AuditFilter(logging.Filter):
    """A filter that redacts the parameters in the records of Girder's audit log."""

    def filter(self, record: logging.LogRecord) -> bool:
        details = getattr(record, "details", None)
        if isinstance(details, Mapping) and isinstance(details.get("params"), Mapping):
            params = {
                name: "***" if str(name).lower() in _SECRET_PARAMETERS else value
                for name, value in details["params"].items()
            }
            record.details = {**details, "params": params}
        return True
