"""Requests of runs to be tried again, in the documents of jobs."""

from __future__ import annotations

from typing import Any

import bson
import pytest

from girder_dask.plugin.store.retries import RETRY_FIELD, RetryChange, with_retry_requests
from girder_dask.protocol.messages import JobSpec, RetryRequest

SPEC = JobSpec("5" * 24, 1, "a:b", timeout=5.0, priority=1, resources={"queue:a": 1.0})


def stored(request: RetryRequest) -> Any:
    """Return a request as the database has it."""
    change: dict[str, Any] = {"$set": {}}
    retry = RetryChange({})
    retry.request(request, {})
    retry.add_to(change, ended=False)
    return bson.decode(bson.encode({"x": change["$set"][RETRY_FIELD]}))["x"]


@pytest.mark.parametrize(
    "request_",
    [
        RetryRequest(1.5),
        RetryRequest(1.5, b"note"),
        RetryRequest(1.5, None, 9.0, -4, {"queue:a.$b": 1.0}),
        RetryRequest(1.5, b"", 0.0, 0, {}),
    ],
)
def test_a_claim_has_what_the_last_run_asked_for(request_: RetryRequest) -> None:
    (spec,) = with_retry_requests([SPEC], {SPEC.id: stored(request_)})
    assert spec == request_.apply_to(SPEC)
    assert with_retry_requests([SPEC], {}) == [SPEC]


@pytest.mark.parametrize("broken", [{"not_before": "x"}, [], {"not_before": 1, "resources": 5}, 7])
def test_a_malformed_request_is_ignored(broken: Any) -> None:
    assert with_retry_requests([SPEC], {SPEC.id: broken}) == [SPEC]
