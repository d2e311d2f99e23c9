"""Logs of a process as JSON, one object a line, with the id of the job that a message is about.

The setting ``girder.log-format`` asks for it. The log of a job in Girder stays as it is.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import datetime, timezone

from girder_dask import config

__all__ = ["JsonFormatter", "install_if_configured"]

_FORMATS = ("text", "json")

# As messages name a job, and as Dask's keys contain its id.
_JOB = re.compile(r"\b[Jj]obs? ([0-9a-f]{24})\b|-([0-9a-f]{24})-\d+\b")


class JsonFormatter(logging.Formatter):
    """Formatter of log records as JSON objects.

    Examples
    --------
    >>> record = logging.makeLogRecord(
    ...     {"name": "girder_dask", "msg": "Job 6b0d3070f9a70c9e367a508c is stopped"}
    ... )
    >>> json.loads(JsonFormatter().format(record))["job"]
    '6b0d3070f9a70c9e367a508c'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return a record in one line."""
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        message = record.getMessage()
        fields = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        error = record.exc_text or ""
        if not error and record.exc_info:
            error = self.formatException(record.exc_info)
        found = _JOB.search(message) or _JOB.search(error)
        if found is not None:
            fields["job"] = found[1] or found[2]
        if error:
            fields["error"] = error
        return json.dumps(fields, ensure_ascii=True)


def install_if_configured() -> None:
    """Let the handlers that write to this process's standard streams write JSON, if asked to.

    Raises
    ------
    GirderDaskError
        If ``girder.log-format`` is neither ``text`` nor ``json``.
    """
    if config.choice("log-format", _FORMATS) != "json":
        return
    formatter = JsonFormatter()
    for logger in _loggers():
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in _streams():
                handler.setFormatter(formatter)
    own = logging.getLogger("girder_dask")
    if not own.hasHandlers():
        # Otherwise Python writes warnings alone, as plain text.
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter)
        own.addHandler(handler)
        own.setLevel(logging.INFO)


def _loggers() -> list[logging.Logger]:
    found = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    return [each for each in found if isinstance(each, logging.Logger)]


def _streams() -> tuple[object, ...]:
    return sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
