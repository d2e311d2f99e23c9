"""Frames that are known by the paths of their files, and processes by the names of modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from girder_dask.worker import tracebacks
from girder_dask.worker.interruption import guarded_frames
from girder_dask.worker.isolation import fork_server

PATHS = {
    *guarded_frames._GUARDED_PATHS,
    *guarded_frames._STREAM_PATHS,
    *guarded_frames._RUN_PATHS,
    *tracebacks._WRAPPER_PATHS,
}
MODULES = {
    *fork_server.TASK_MODULES,
    "girder_dask.worker.isolation.fork_server",
    "girder_dask.worker.isolation.subreaper",
}


@pytest.mark.parametrize("path", sorted(PATHS))
def test_every_path_by_which_a_frame_is_known_exists(path: str) -> None:
    assert Path(path).exists()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_that_a_process_is_started_with_exists(module: str) -> None:
    assert importlib.util.find_spec(module) is not None
