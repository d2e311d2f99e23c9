"""The frames of threads, taken while the garbage collector pauses."""

from __future__ import annotations

import gc
import sys
import threading

import pytest

from girder_dask.utils.thread_frames import thread_frames


def test_thread_frames_pause_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    take, enabled = sys._current_frames, []
    monkeypatch.setattr(sys, "_current_frames", lambda: enabled.append(gc.isenabled()) or take())
    assert threading.get_ident() in thread_frames()
    assert enabled == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        thread_frames()
        assert not gc.isenabled(), "it is left as it was"
    finally:
        gc.enable()
