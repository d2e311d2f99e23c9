"""The log of a job takes text in order, once, and makes writers wait while it is full."""

from __future__ import annotations

import os
import threading

import pytest

from girder_dask.worker.job_log.log import JobLog, capturing, current
from tests.support.captured_output import (
    DEADLINE,
    installed,
)


def test_log_yields_text_in_order_and_once():
    log = JobLog()
    assert log.write("one\n") == 4
    assert log.write(b"two") == 3
    assert log.take() == "one\ntwo"
    assert log.take() == ""


def test_log_take_splits_at_a_limit_and_announces_the_rest():
    calls = []
    log = JobLog(on_text=lambda: calls.append(1))
    log.write("abc")
    log.write("def\n")
    assert len(calls) == 1
    assert log.take(4) == "abcd"
    assert len(calls) == 2
    assert log.take(4) == "ef\n"
    assert len(calls) == 2
    log.write("x")
    assert len(calls) == 3


def test_log_on_text_runs_outside_of_the_job_and_may_fail():
    seen = []

    def on_text() -> None:
        seen.append(current.get())
        raise RuntimeError("nobody listens")

    with installed() as worker:
        log = JobLog(on_text=on_text)
        with capturing(log):
            print("hello")
    assert seen == [None]
    assert log.take() == "hello\n"
    assert "nobody listens" in worker.err()


def test_log_joins_characters_split_over_writes_of_bytes():
    log = JobLog()
    for byte in "größe €\n".encode():
        log.write(bytes([byte]))
    assert log.take() == "größe €\n"


def test_log_does_not_mix_split_characters_of_streams():
    log = JobLog()
    log.write("é".encode()[:1], "stdout")
    log.write("ü".encode(), "stderr")
    log.write("é".encode()[1:], "stdout")
    assert log.take() == "üé"


def test_log_replaces_bytes_that_are_not_utf8():
    log = JobLog()
    log.write(b"\xff|")
    log.write(b"\xc3")
    log.write("text")
    log.write(b"\xc3")
    log.close()
    assert log.take() == "\ufffd|\ufffdtext\ufffd"


def test_log_yields_text_that_can_be_encoded():
    log = JobLog()
    log.write(os.fsdecode(b"caf\xe9\n"))
    assert log.take() == "caf\\udce9\n"


def test_log_takes_text_and_bytes_alone():
    log = JobLog()
    with pytest.raises(TypeError, match="not int"):
        log.write(5)  # type: ignore[arg-type]
    assert log.write(bytearray(b"a")) == log.write(memoryview(b"b")) == 1
    assert log.take() == "ab"


def test_log_makes_a_writer_wait_while_the_buffer_is_full():
    log = JobLog(capacity=10)
    log.write("0123456789")
    done = threading.Event()

    def write() -> None:
        log.write("more")
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not done.wait(0.1)
    assert log.take() == "0123456789"
    assert done.wait(DEADLINE)
    thread.join()
    assert log.take() == "more"


def test_log_close_releases_a_waiting_writer():
    with installed() as worker:
        log = JobLog(capacity=1)
        log.write("full")
        thread = threading.Thread(target=log.write, args=("late\n",))
        thread.start()
        log.close()
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert log.take() == "full"
    assert worker.err() == "late\n"


def test_log_does_not_hold_up_an_event_loop_for_ever():
    import asyncio

    async def write() -> None:
        log.write("more")

    log = JobLog(capacity=1)
    log.write("full")
    asyncio.run(asyncio.wait_for(write(), DEADLINE))
    assert log.take() == "fullmore"


def test_log_may_be_closed_twice_and_later_text_goes_to_the_worker():
    with installed() as worker:
        log = JobLog()
        log.write("in time\n")
        log.close()
        log.close()
        with capturing(log):
            print("late")
    assert log.take() == "in time\n"
    assert worker.err() == "late\n"
