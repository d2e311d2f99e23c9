"""The stack of the tests of girder_worker's tasks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.celery_site import CelerySite
from tests.support.docker_engine import Engine
from tests.support.package_site import PackageSite


@pytest.fixture(scope="session")
def celery_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CelerySite]:
    """A stack whose Girder runs girder_worker's tasks on Dask."""
    with CelerySite(tmp_path_factory.mktemp("celery_site")) as site:
        yield site


@pytest.fixture(scope="session")
def package_site(
    docker_engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PackageSite]:
    """A stack with packages of tasks from PyPI, and a Docker engine on its worker."""
    with PackageSite(tmp_path_factory.mktemp("package_site"), docker_engine, threads=8) as site:
        yield site
