"""The lines of several threads stay whole."""

from __future__ import annotations

import threading

from girder_dask.worker.job_log.line_assembler import LineAssembler
from girder_dask.worker.job_log.log import JobLog, capturing
from tests.support.captured_output import (
    DEADLINE,
    installed,
)


def test_line_assembler_ends_a_begun_line_first():
    busy = {1, 2}
    lines = LineAssembler(is_busy=lambda writer, _: writer in busy)
    for writer, text in [(1, "a"), (2, "b"), (3, "c\n"), (1, "a\n"), (2, "b\n"), (1, "d\n")]:
        lines.add(writer, text)
    assert "".join(lines.pieces) == "aa\nbb\nc\nd\n"


def test_line_assembler_does_not_wait_for_an_idle_writer():
    busy = {1}
    lines = LineAssembler(is_busy=lambda writer, _: writer in busy)
    lines.add(1, "Working... ")
    lines.add(2, "held\n")
    lines.retry()
    assert lines.is_holding
    busy.clear()
    lines.retry()
    assert not lines.is_holding
    lines.add(1, "more... ")
    lines.add(2, "other\n")
    assert "".join(lines.pieces) == "Working... held\nmore... other\n"


def test_line_assembler_releases_held_text_without_another_write():
    """A writer that stays inside write() for long holds up others only for so long."""
    arrived, inside, leave = threading.Event(), threading.Event(), threading.Event()

    def on_text() -> None:
        if threading.current_thread() is thread:
            inside.set()
            leave.wait(DEADLINE)
        else:
            arrived.set()

    log = JobLog(on_text=on_text)
    thread = threading.Thread(target=log.write, args=("begun ",))
    thread.start()
    assert inside.wait(DEADLINE)
    assert log.take() == "begun "
    log.write("other\n")
    assert log.take() == ""
    assert arrived.wait(DEADLINE)
    assert log.take() == "other\n"
    leave.set()
    thread.join()


def test_line_assembler_keeps_lines_of_many_threads_whole():
    with installed():
        log = JobLog()

        def work(name: int) -> None:
            with capturing(log):
                for i in range(2000):
                    print("thread", name, "line", i)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log.close()
    lines = log.take().splitlines()
    assert len(lines) == 6 * 2000
    for name in range(6):
        mine = [line for line in lines if line.startswith(f"thread {name} ")]
        assert mine == [f"thread {name} line {i}" for i in range(2000)]
