"""What the tests of the scheduler share."""

from __future__ import annotations

import pytest

from tests.support.dispatch_site import Site


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("girder_dask.scheduler.event_recorder._ACKNOWLEDGEMENT_DELAY_S", 0.0)
