"""What runs the snippets of the documentation; see tests/support/snippets.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sybil import Sybil

from tests.support.snippets import read_blocks


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
