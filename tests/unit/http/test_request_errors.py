"""Errors of requests: which may pass, which requests were not sent, and what they say."""

from __future__ import annotations

import pytest
import requests
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError, ProtocolError

from girder_dask.http.request_errors import (
    GATEWAY_STATUSES,
    error_cause,
    error_message,
    is_transient,
    is_unsent,
)


def answered(status: int, body: bytes = b"", reason: str = "Because") -> requests.HTTPError:
    response = requests.Response()
    response.status_code, response.reason, response._content = status, reason, body
    return requests.HTTPError(response=response)


def wrapped(reason: Exception) -> requests.ConnectionError:
    return requests.ConnectionError(MaxRetryError(None, "/", reason))  # type: ignore[arg-type]


REFUSED = NewConnectionError(None, "it was refused")  # type: ignore[arg-type]
REFUSED.__cause__ = ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize(
    ("error", "unsent"),
    [
        (wrapped(REFUSED), True),
        (wrapped(ConnectTimeoutError("too slow")), True),
        (requests.ConnectionError(ProtocolError("Connection aborted.")), False),
        (requests.ReadTimeout("too slow"), False),
        (requests.ConnectionError(), False),
        (answered(503), False),
        (answered(502), False),
    ],
)
def test_is_unsent_needs_the_lack_of_a_connection(error: Exception, unsent: bool) -> None:
    assert is_unsent(error) is unsent


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_is_transient_knows_one_set_of_statuses(status: int) -> None:
    assert is_transient(answered(status))
    assert is_transient(answered(status), GATEWAY_STATUSES) is (status in (502, 503, 504))


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 409, 413, 501])
def test_is_transient_gives_up_on_refusals(status: int) -> None:
    assert not is_transient(answered(status))


def test_error_message_is_that_of_girder_or_the_status_in_words() -> None:
    assert error_message(answered(400, b'{"message": "No coins"}').response) == "No coins"
    assert error_message(answered(502, b"<html>").response) == "Because"
    assert error_message(answered(502, b"[]").response, "nothing") == "nothing"
    assert error_message(None) == "no reason given"


def test_error_cause_is_the_innermost_reason() -> None:
    assert error_cause(wrapped(REFUSED)) == "[Errno 111] Connection refused"
    nested = requests.ConnectionError(ProtocolError("Connection aborted.", OSError("It hung up.")))
    nested.args[0].__cause__ = OSError("It hung up.")
    assert error_cause(nested) == "It hung up"
    assert error_cause(ValueError("plain")) == "plain"


def test_error_cause_survives_a_circle() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert error_cause(first) == "second"
