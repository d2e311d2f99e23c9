"""Tracebacks show the frames of the user, and of this package only what follows them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from girder_dask.utils.pytree import tree_map
from girder_dask.worker.tracebacks import format_error, own_traceback
from tests.support.run_worker import Worker, captured


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    opened = Worker(tmp_path)
    yield opened
    opened.close()


def caught(call: Any) -> BaseException:
    try:
        call()
    except Exception as e:  # noqa: BLE001 - whatever it is
        return e
    raise AssertionError("it raised nothing")


def fails(_: Any) -> None:
    raise ValueError("no coins")


def test_a_frame_of_ours_that_the_user_has_called_is_shown() -> None:
    text = format_error(caught(lambda: tree_map(fails, [1])))
    assert text.index("pytree.py") < text.index("in fails")


def test_an_error_without_frames_has_no_traceback() -> None:
    assert own_traceback(ValueError("x")) is None
    assert format_error(ValueError("x")) == "ValueError: x\n"


def test_threads_and_pools_of_a_job_show_none_of_our_frames(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not that of pytest

    def work() -> None:
        thread = threading.Thread(target=fails, args=(1,))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(fails, 2).result()

    with captured():
        worker.outcome(work)
    assert worker.log().count("ValueError: no coins") == 2
    assert "Exception in thread" in worker.log()
    assert "girder_dask/" not in worker.log()
