"""The Girder of the tests of transfers."""

from __future__ import annotations

from collections.abc import Iterator

import dask
import pytest

from tests.support.file_girder import FileGirder, serving_files


@pytest.fixture
def girder() -> Iterator[FileGirder]:
    """Serve files, to transfers that are retried for 30 s."""
    with dask.config.set({"girder.worker.retry-time": "30 s"}), serving_files() as peer:
        yield peer
