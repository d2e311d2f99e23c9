"""Notes with which a task is tried again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from girder_dask.celery import message_body, retries
from girder_dask.errors import ArgumentError
from girder_dask.protocol.celery_message import CeleryMessage


def message(args: Any, **headers: Any) -> CeleryMessage:
    body = json.dumps([args, {}, {"chain": None}])
    return CeleryMessage("1", "tasks.add", "celery", body, headers={"lang": "py", **headers})


def test_a_retry_keeps_the_arguments_and_counts() -> None:
    first = message({"py/tuple": [1, 2]}, retries=0)
    again = replace(message([1, 2]), headers={"retries": 1, "eta": "2026-11-30T00:00:00+00:00"})
    request = retries.request(first, again)
    assert request.not_before == 1795996800.0
    assert len(request.note or b"") < 200
    continued = retries.continued(first, request.note or b"")
    assert continued.body == first.body
    assert (continued.headers["retries"], continued.headers["lang"]) == (1, "py")


def test_a_retry_with_other_arguments_has_them() -> None:
    first = message([1])
    request = retries.request(first, message([2], retries=1))
    continued = retries.continued(first, request.note or b"")
    assert message_body.arguments(continued) == [[2], {}]


def test_a_retry_with_large_other_arguments_is_refused() -> None:
    with pytest.raises(ArgumentError, match="asks to be tried again with other arguments"):
        retries.request(message([1]), message(["x" * 100_000]))


def test_a_retry_with_the_same_large_arguments_is_not() -> None:
    large = message(["x" * 100_000])
    assert retries.request(large, replace(large, headers={"retries": 1})).note is not None
