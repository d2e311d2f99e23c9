"""A Girder in the process of pytest, on a MongoDB and a Redis, empty for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.girder_services import Services, serving
from tests.support.loaded_girder import LoadedGirder


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """A MongoDB and a Redis, for all tests of this process."""
    with serving(tmp_path_factory.mktemp("store")) as services:
        yield services


@pytest.fixture(scope="session")
def loaded(services: Services) -> LoadedGirder:
    """A Girder that this process loads once, with our plugin and that of girder_worker."""
    return LoadedGirder(services)


@pytest.fixture(scope="module", autouse=True)
def active(loaded: LoadedGirder) -> Iterator[None]:
    """Make it the Girder of this process, until the tests of another file follow."""
    with loaded.active():
        yield


@pytest.fixture(autouse=True)
def empty(active: None, loaded: LoadedGirder) -> None:
    """Delete the jobs, tokens, API keys and settings of the tests before."""
    loaded.clear()


@pytest.fixture
def girder(empty: None, loaded: LoadedGirder) -> LoadedGirder:
    """The Girder of this process."""
    return loaded
