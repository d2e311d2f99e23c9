"""What the tests of the scheduler share."""

from __future__ import annotations

import pytest

from tests.support.dispatch_site import Site


@pytest.fixture
def site() -> Site:
    return Site()
