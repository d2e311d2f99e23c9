"""The container engines of tests, and what runs the snippets of the documentation.

See tests/support/docker_engine.py and tests/support/snippets.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sybil import Sybil

from tests.support.docker_engine import docker_engine, podman_engine
from tests.support.snippets import read_blocks

__all__ = ["docker_engine", "podman_engine"]


@pytest.fixture
def fixture(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Give a snippet the fixtures that it needs, and start no stack for one that needs none."""
    return request.getfixturevalue


pytest_collect_file = Sybil(
    parsers=[read_blocks],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md"],
    excludes=["examples/*", "benchmarks/*"],
    fixtures=["fixture"],
).pytest()
