"""The engine, the images and the network of the tests of ``deploy/``."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import girder_client
import pytest

from tests.support.compose_site import ComposeSite
from tests.support.deploy_engine import DeployEngine, missing_programs
from tests.support.network_hosts import NetworkHosts

#: The roles that have an image.
ROLES = ("dask", "girder", "dsa")


@pytest.fixture(scope="session")
def deploy_network() -> Iterator[NetworkHosts]:
    """A host of its own, for the engine."""
    if os.getuid() != 0:
        pytest.skip("These tests start dockerd, which needs root.")
    if missing := missing_programs():
        pytest.skip(f"These tests need {', '.join(missing)}. `make deploy-test` installs them.")
    with NetworkHosts(1) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def deploy_engine(deploy_network: NetworkHosts) -> Iterator[DeployEngine]:
    """An engine that has built all images.

    ``BASE_IMAGE`` names a base that it can pull, and ``DEPLOY_DIRECTORY`` a directory in which it
    keeps the images: a run that finds those of its commit there builds none.
    """
    with contextlib.ExitStack() as stack:
        kept = os.environ.get("DEPLOY_DIRECTORY")
        directory = kept or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="gd-deploy-", ignore_cleanup_errors=True)
        )
        engine = DeployEngine(Path(directory), deploy_network.namespaces[0])
        stack.callback(engine.unmount)
        stack.callback(engine.stop)
        engine.directory.mkdir(parents=True, exist_ok=True)
        engine.build(ROLES, os.environ.get("BASE_IMAGE"))
        engine.start()
        yield engine


@pytest.fixture
def admin(site: ComposeSite) -> Iterator[girder_client.GirderClient]:
    """Give a test a client of the administrator of its file's site."""
    with site.administrator() as client:
        yield client
