"""The images of ``deploy/images``: what they are labelled with, and what is in them."""

from __future__ import annotations

import pytest

from girder_dask import __version__
from tests.deploy.conftest import ROLES
from tests.support.deploy_engine import REVISION_LABEL, DeployEngine, image_of, revision

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("role", ROLES)
def test_image_is_labelled_with_its_version_and_commit(
    deploy_engine: DeployEngine, role: str
) -> None:
    labels = deploy_engine.labels(image_of(role))
    assert labels["org.opencontainers.image.title"] == f"girder_dask {role}"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels[REVISION_LABEL] == revision()
    assert len(labels[REVISION_LABEL]) == 40


@pytest.mark.parametrize("role", ROLES)
def test_image_has_an_account_an_init_and_no_installer(
    deploy_engine: DeployEngine, role: str
) -> None:
    image = image_of(role)
    configuration = deploy_engine.get(f"/images/{image}/json")["Config"]
    assert configuration["User"] == "10001:10001"
    assert configuration["Entrypoint"] == ["tini", "--"]
    command = ["docker", "run", "--rm", "--network", "none", "--read-only", image]
    assert __version__ in deploy_engine.run(*command, "girder-dask", "--version")
    with pytest.raises(AssertionError, match="No module named pip"):
        deploy_engine.run(*command, "python", "-m", "pip", "--version")
