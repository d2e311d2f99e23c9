"""Fixtures of the tests of requests."""

from __future__ import annotations

import pytest

from girder_dask.standalone import ports


@pytest.fixture
def free_port() -> int:
    """Return a port on which nothing listens."""
    return ports.choose(None)
