"""Errors that are logged once until they change."""

from __future__ import annotations

import logging

import pytest

from girder_dask.errors import GirderError
from girder_dask.utils.error_log import ErrorLog, describe

logger = logging.getLogger("girder_dask.tests")


def test_error_log_logs_an_error_once_until_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    errors = ErrorLog(logger, expected=(OSError,))
    for text in ("one", "one", "two", "one"):
        errors.failed(OSError(text), "%s waits: %s", "It")
    assert caplog.messages == [f"It waits: OSError: {text}" for text in ("one", "two", "one")]
    assert errors.error == "OSError: one"


def test_error_log_logs_the_recovery_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    errors = ErrorLog(logger, expected=(OSError,))
    errors.recovered("%s works", "It")
    errors.failed(OSError("one"), "%s")
    errors.recovered("%s works", "It")
    errors.recovered("%s works", "It")
    assert caplog.messages == ["OSError: one", "It works"]
    assert errors.error is None


def test_error_log_shows_the_traceback_of_what_no_outage_causes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = ErrorLog(logger, expected=(OSError,))
    errors.failed(OSError("away"), "%s")
    errors.failed(ZeroDivisionError("why"), "%s")
    outage, bug = caplog.records
    assert (outage.levelno, outage.exc_info) == (logging.WARNING, None)
    assert bug.levelno == logging.ERROR
    assert bug.exc_info is not None


def test_error_log_survives_an_error_without_a_text(caplog: pytest.LogCaptureFixture) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    ErrorLog(logger, expected=(Mute,)).failed(Mute(), "It failed: %s")
    assert caplog.messages == ["It failed: Mute"]


def test_describe_needs_no_type_for_our_own_sentences() -> None:
    assert describe(GirderError("Girder is away.")) == "Girder is away."
    assert describe(ValueError("7")) == "ValueError: 7"
