"""Fixtures of tests that need no stack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from girder_dask.client.backend import set_backend
from tests.support.recording_backend import RecordingBackend


@pytest.fixture
def backend() -> Iterator[RecordingBackend]:
    """Record jobs in memory, for this process."""
    recording = RecordingBackend()
    set_backend(recording)
    yield recording
    set_backend(None)
