"""The stack of the tests of girder_worker's tasks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.celery_site import CelerySite


@pytest.fixture(scope="session")
def celery_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CelerySite]:
    """A stack whose Girder runs girder_worker's tasks on Dask."""
    with CelerySite(tmp_path_factory.mktemp("celery_site")) as site:
        yield site
