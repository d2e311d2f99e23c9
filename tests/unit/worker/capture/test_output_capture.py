"""Output reaches the log of the job that wrote it."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Iterator

import pytest

from girder_dask.worker.capture import output_capture
from girder_dask.worker.job_log.log import JobLog, capturing
from tests.support.captured_output import (
    Worker,
    bare_root_logger,
    installed,
    run_python,
)

# -- the streams ---------------------------------------------------------------------------


def test_capture_takes_output_inside_a_job_alone():
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


def test_stream_takes_bytes_as_does_its_buffer():
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


def test_stream_behaves_as_a_file():
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


def test_stream_closed_by_a_task_works_for_others():
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


def test_capture_yields_to_redirect_stdout():
    with installed():
        log, target = JobLog(), io.StringIO()
        with capturing(log):
            with contextlib.redirect_stdout(target):
                print("caught")
            with contextlib.redirect_stdout(sys.stderr):
                print("to stderr")
    assert target.getvalue() == "caught\n"
    assert log.take() == "to stderr\n"


def test_capture_takes_a_printed_traceback():
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


def test_capture_does_not_change_output_like_that_of_click_and_tqdm():
    import click

    with installed():
        log = JobLog()
        with capturing(log):
            click.echo("grüße")
            click.echo(b"bytes")
            click.secho("red", fg="red", err=True)
    assert log.take() == "grüße\nbytes\nred\n"


# -- logging -------------------------------------------------------------------------------


def test_capture_takes_logging_without_configuration():
    with bare_root_logger(), installed("INFO") as worker:
        log = JobLog()
        with capturing(log):
            logging.getLogger("a.task").info("counting %d", 3)
            logging.getLogger("a.task").debug("too fine")
        logging.getLogger("a.task").info("outside")
        logging.getLogger("a.task").warning("outside")
    assert log.take() == "counting 3\n"
    assert worker.err() == "outside\n"


def test_capture_takes_logging_although_the_operator_configured_the_root_logger():
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
def test_capture_takes_the_output_of_a_handler_of_the_task_once(operator):
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


def test_capture_takes_logging_after_basic_config_once():
    with bare_root_logger() as root, installed():
        log = JobLog()
        with capturing(log):
            logging.basicConfig(format="%(levelname)s:%(message)s", level=logging.DEBUG)
            logging.debug("fine")  # noqa: LOG015
        root.handlers[:] = []
    assert log.take() == "DEBUG:fine\n"


def test_capture_level_is_a_number_or_a_name():
    with pytest.raises(ValueError, match="'LOUD' is not the name"):
        output_capture.install("LOUD")
    with bare_root_logger(), installed("error"):
        log = JobLog()
        with capturing(log):
            logging.getLogger("a").warning("no")
            logging.getLogger("a").error("yes")
    assert log.take() == "yes\n"


def test_capture_keeps_a_line_whole_while_python_makes_a_part_of_it():
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


def test_capture_shows_each_job_its_warnings_once():
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


def test_capture_shows_a_warning_outside_of_jobs_once():
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


def test_capture_of_many_lines_costs_little():
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
        started = time.thread_time()
        with capturing(log):
            for i in range(count):
                print(i)
        took = time.thread_time() - started
        log.close()
        done.set()
        consumer.join()
    assert "".join(taken) == "".join(f"{i}\n" for i in range(count))
    assert took < 5  # about 0.4 s of a processor
