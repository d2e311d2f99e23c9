"""A worker without Dask for each test of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.held_tasks import go_on, started
from tests.support.noting_transforms import did
from tests.support.run_worker import Worker


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    started.clear()
    go_on.clear()
    did.clear()
    opened = Worker(tmp_path)
    yield opened
    go_on.set()  # whatever waits for it, also when the test has failed
    opened.close()
