"""Output reaches the log of the job that wrote it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Iterator

import pytest

from girder_dask.worker.capture import output_capture
from girder_dask.worker.job_log.line_assembler import LineAssembler
from girder_dask.worker.job_log.log import JobLog, capturing, current

DEADLINE = 20.0


class Worker:
    """The worker's own streams."""

    def __init__(self) -> None:
        self.stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        self.stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)

    def out(self) -> str:
        return self.stdout.buffer.getvalue().decode()

    def err(self) -> str:
        return self.stderr.buffer.getvalue().decode()


@contextlib.contextmanager
def installed(level: int | str = "INFO") -> Iterator[Worker]:
    # Not a fixture: pytest puts its own filters and handlers around each phase of a test.
    worker = Worker()
    with contextlib.redirect_stdout(worker.stdout), contextlib.redirect_stderr(worker.stderr):
        output_capture.install(level)
        try:
            yield worker
        finally:
            output_capture.uninstall()


@contextlib.contextmanager
def bare_root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what
        tick.wait(0.005)


def run_python(code: str) -> str:
    """Run code in a process where pytest has changed nothing."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- the buffer ----------------------------------------------------------------------------


def test_what_is_written_is_taken_in_order_and_once():
    log = JobLog()
    assert log.write("one\n") == 4
    assert log.write(b"two") == 3
    assert log.take() == "one\ntwo"
    assert log.take() == ""


def test_a_limit_splits_what_waits_and_the_rest_is_announced():
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


def test_on_text_runs_outside_of_the_job_and_may_fail():
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


def test_characters_may_be_split_over_writes_of_bytes():
    log = JobLog()
    for byte in "größe €\n".encode():
        log.write(bytes([byte]))
    assert log.take() == "größe €\n"


def test_streams_do_not_mix_their_split_characters():
    log = JobLog()
    log.write("é".encode()[:1], "stdout")
    log.write("ü".encode(), "stderr")
    log.write("é".encode()[1:], "stdout")
    assert log.take() == "üé"


def test_bytes_that_are_not_utf8_are_replaced():
    log = JobLog()
    log.write(b"\xff|")
    log.write(b"\xc3")
    log.write("text")
    log.write(b"\xc3")
    log.close()
    assert log.take() == "\ufffd|\ufffdtext\ufffd"


def test_taken_text_can_be_encoded():
    log = JobLog()
    log.write(os.fsdecode(b"caf\xe9\n"))
    assert log.take() == "caf\\udce9\n"


def test_only_text_and_bytes_can_be_written():
    log = JobLog()
    with pytest.raises(TypeError, match="not int"):
        log.write(5)  # type: ignore[arg-type]
    assert log.write(bytearray(b"a")) == log.write(memoryview(b"b")) == 1
    assert log.take() == "ab"


def test_a_writer_waits_while_the_buffer_is_full():
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


def test_close_lets_a_waiting_writer_go():
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


def test_an_event_loop_is_not_held_up_for_ever():
    import asyncio

    async def write() -> None:
        log.write("more")

    log = JobLog(capacity=1)
    log.write("full")
    asyncio.run(asyncio.wait_for(write(), DEADLINE))
    assert log.take() == "fullmore"


def test_closing_twice_is_allowed_and_later_text_goes_to_the_worker():
    with installed() as worker:
        log = JobLog()
        log.write("in time\n")
        log.close()
        log.close()
        with capturing(log):
            print("late")
    assert log.take() == "in time\n"
    assert worker.err() == "late\n"


# -- lines of several threads --------------------------------------------------------------


def test_a_line_that_is_being_written_is_ended_first():
    busy = {1, 2}
    lines = LineAssembler(is_busy=lambda writer, _: writer in busy)
    for writer, text in [(1, "a"), (2, "b"), (3, "c\n"), (1, "a\n"), (2, "b\n"), (1, "d\n")]:
        lines.add(writer, text)
    assert "".join(lines.pieces) == "aa\nbb\nc\nd\n"


def test_a_line_whose_writer_does_something_else_holds_up_nobody():
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


def test_what_is_held_comes_without_another_write():
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


def test_lines_of_many_threads_stay_whole():
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


# -- the streams ---------------------------------------------------------------------------


def test_output_goes_to_the_job_inside_and_to_the_worker_outside():
    with installed() as worker:
        log = JobLog()
        print("before")
        with capturing(log):
            print("out")
            print("err", file=sys.stderr)
            sys.stdout.writelines(["x", "y\n"])
            sys.stdout.write("\r 50%|#####     |")
        sys.stderr.write("after\n")
    assert log.take() == "out\nerr\nxy\n\r 50%|#####     |"
    assert worker.out() == "before\n"
    assert worker.err() == "after\n"


def test_bytes_may_be_written_to_the_stream_and_to_its_buffer():
    with installed() as worker:
        log = JobLog()
        with capturing(log):
            sys.stdout.write("é".encode())
            sys.stdout.buffer.write(b"bin\n")
            sys.stderr.buffer.write(memoryview(b"err\n"))
            print("wrapped", file=io.TextIOWrapper(sys.stdout.buffer, "utf-8", write_through=True))
        sys.stdout.write(b"bytes\n")
        sys.stdout.buffer.write(b"more\n")
    assert log.take() == "ébin\nerr\nwrapped\n"
    assert worker.out() == "bytes\nmore\n"


def test_the_stream_behaves_as_a_file():
    with installed() as worker:
        log = JobLog()
        with capturing(log):
            assert sys.stdout.isatty() is False
            assert sys.stdout.encoding == "utf-8"
            assert sys.stdout.writable()
            assert not sys.stdout.readable()
            assert not sys.stdout.closed
            sys.stdout.reconfigure(encoding="latin-1")
            sys.stdout.flush()
            sys.stdout.buffer.flush()
            with pytest.raises(TypeError):
                sys.stdout.write(5)
        assert sys.stdout.write_through is True  # an attribute that only the original has
        assert worker.stdout.encoding == "utf-8"
        with pytest.raises(AttributeError):
            _ = sys.stdout.no_such_attribute
        assert "original" not in repr(sys.stdout)


def test_a_task_that_closes_its_stream_harms_nobody():
    with installed() as worker:
        first, second = JobLog(), JobLog()
        with capturing(first):
            sys.stdout.close()
            with sys.stderr:
                pass
        with capturing(second):
            print("still here")
        print("worker too")
    assert second.take() == "still here\n"
    assert worker.out() == "worker too\n"


def test_redirect_stdout_takes_the_output_away():
    with installed():
        log, target = JobLog(), io.StringIO()
        with capturing(log):
            with contextlib.redirect_stdout(target):
                print("caught")
            with contextlib.redirect_stdout(sys.stderr):
                print("to stderr")
    assert target.getvalue() == "caught\n"
    assert log.take() == "to stderr\n"


def test_a_traceback_is_printed_to_the_job():
    with installed():
        log = JobLog()
        with capturing(log):
            try:
                raise KeyError("lost")
            except KeyError:
                traceback.print_exc()
    text = log.take()
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("KeyError: 'lost'\n")


def test_click_and_tqdm_like_output_passes_unchanged():
    import click

    with installed():
        log = JobLog()
        with capturing(log):
            click.echo("grüße")
            click.echo(b"bytes")
            click.secho("red", fg="red", err=True)
    assert log.take() == "grüße\nbytes\nred\n"


# -- logging -------------------------------------------------------------------------------


def test_logging_without_configuration_reaches_the_job():
    with bare_root_logger(), installed("INFO") as worker:
        log = JobLog()
        with capturing(log):
            logging.getLogger("a.task").info("counting %d", 3)
            logging.getLogger("a.task").debug("too fine")
        logging.getLogger("a.task").info("outside")
        logging.getLogger("a.task").warning("outside")
    assert log.take() == "counting 3\n"
    assert worker.err() == "outside\n"


def test_logging_reaches_the_job_although_the_operator_configured_the_root_logger():
    with bare_root_logger() as root, installed_with_operator(root) as (worker, operator):
        log = JobLog()
        with capturing(log):
            logging.getLogger("a.task").info("for the job")
            logging.getLogger("a.task").warning("for both")
        logging.getLogger("a.task").warning("for the operator")
    assert log.take() == "for the job\nfor both\n"
    assert operator.getvalue() == "for both\nfor the operator\n"
    assert worker.err() == ""


@contextlib.contextmanager
def installed_with_operator(root: logging.Logger) -> Iterator[tuple[Worker, io.StringIO]]:
    operator = io.StringIO()
    root.addHandler(logging.StreamHandler(operator))
    with installed("INFO") as worker:
        yield worker, operator


@pytest.mark.parametrize("operator", [False, True])
def test_a_handler_of_the_task_prints_once_and_is_its_own(operator):
    with bare_root_logger() as root:
        if operator:
            root.addHandler(logging.StreamHandler(io.StringIO()))
        with installed():
            first, second = JobLog(), JobLog()
            logger = logging.getLogger("a.task.with.handler")
            with capturing(first):
                handler = logging.StreamHandler()
                handler.setFormatter(logging.Formatter("<%(message)s>"))
                logger.addHandler(handler)
                logger.info("one")
            with capturing(second):
                logger.info("two")
            logger.removeHandler(handler)
    assert first.take() == "<one>\n"
    assert second.take() == "two\n"


def test_basic_config_in_a_task_works_without_duplicates():
    with bare_root_logger() as root, installed():
        log = JobLog()
        with capturing(log):
            logging.basicConfig(format="%(levelname)s:%(message)s", level=logging.DEBUG)
            logging.debug("fine")  # noqa: LOG015
        root.handlers[:] = []
    assert log.take() == "DEBUG:fine\n"


def test_a_level_is_a_number_or_a_name():
    with pytest.raises(ValueError, match="'LOUD' is not the name"):
        output_capture.install("LOUD")
    with bare_root_logger(), installed("error"):
        log = JobLog()
        with capturing(log):
            logging.getLogger("a").warning("no")
            logging.getLogger("a").error("yes")
    assert log.take() == "yes\n"


def test_a_line_stays_whole_while_python_makes_a_part_of_it():
    """The interpreter turns to another thread in ``__str__``, and in what the collector calls."""

    class Slow:
        def __str__(self):
            time.sleep(0.002)
            return "slow"

    def say(log, number):
        with capturing(log):
            for i in range(50):
                print(number, Slow(), i)

    log = JobLog()
    with installed():
        threads = [threading.Thread(target=say, args=(log, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = log.take().splitlines()
    assert sorted(lines) == sorted(f"{n} slow {i}" for n in range(4) for i in range(50))


# -- warnings ------------------------------------------------------------------------------

WARNINGS = """
    import sys, warnings
    from girder_dask.worker.capture import output_capture
    from girder_dask.worker.job_log.log import JobLog, capturing
    output_capture.install()

    def warn():
        warnings.warn("old", UserWarning)

    def job(times=3):
        log = JobLog()
        with capturing(log):
            for _ in range(times):
                warn()
        return log.take()
"""


def test_each_job_sees_its_warnings_once():
    out = run_python(
        textwrap.dedent(WARNINGS)
        + textwrap.dedent("""
        for text in (job(), job()):
            assert text.count("UserWarning: old") == 1, text
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            assert job().count("UserWarning: old") == 3
            assert not seen  # which is not the job's
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert job().count("UserWarning: old") == 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert job() == ""
        assert job().count("UserWarning: old") == 1
        print("done")
        """)
    )
    assert out == "done\n"


def test_outside_of_jobs_a_warning_is_shown_once():
    code = (
        textwrap.dedent(WARNINGS)
        + "import io, contextlib\nbox = io.StringIO()\n"
        + "with contextlib.redirect_stderr(box):\n    warn(); warn(); job(); warn()\n"
        + "print(box.getvalue().count('UserWarning: old'))\n"
    )
    # The job's warning went to its log, although stderr was replaced outside of it.
    assert run_python(code) == "1\n"


# -- installing ----------------------------------------------------------------------------


def test_uninstall_restores_everything():
    with bare_root_logger() as root:
        before = (
            sys.stdout,
            sys.stderr,
            logging.lastResort,
            root.level,
            root.handlers[:],
            warnings.showwarning,
            warnings.filters[:],
        )
        output_capture.install()
        output_capture.install()
        assert sys.stdout is not before[0]
        output_capture.uninstall()
        output_capture.uninstall()
        after = (
            sys.stdout,
            sys.stderr,
            logging.lastResort,
            root.level,
            root.handlers[:],
            warnings.showwarning,
            warnings.filters[:],
        )
    assert after == before


def test_uninstall_leaves_alone_what_somebody_replaced():
    mine = io.StringIO()
    with contextlib.redirect_stdout(sys.stdout):
        output_capture.install()
        sys.stdout = mine
        output_capture.uninstall()
        assert sys.stdout is mine


def test_many_lines_cost_little():
    count = 200_000
    with installed():
        arrived, done, taken = threading.Event(), threading.Event(), []
        log = JobLog(on_text=arrived.set)

        def consume() -> None:
            while not done.is_set() or arrived.is_set():
                if arrived.wait(0.1):
                    arrived.clear()
                    taken.append(log.take())

        consumer = threading.Thread(target=consume)
        consumer.start()
        started = time.perf_counter()
        with capturing(log):
            for i in range(count):
                print(i)
        elapsed = time.perf_counter() - started
        log.close()
        done.set()
        consumer.join()
    assert "".join(taken) == "".join(f"{i}\n" for i in range(count))
    assert elapsed < 5  # about 0.4 s; more than that only on a machine that is busy
