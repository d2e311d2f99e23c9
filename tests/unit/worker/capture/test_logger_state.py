"""What a task logs is in its log, once, whatever it or others have set of ``logging``."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import logging.config
import logging.handlers
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from girder_dask.worker.capture import output_capture
from girder_dask.worker.job_log.log import current
from tests.support.deadline import until
from tests.support.logging_habits import (
    HEARD,
    SILENT,
    TIMES,
    calls_basic_config,
    counts,
    disables_logging,
    logger,
    say,
    state_of_logging,
    warn_as_others,
)
from tests.support.run_worker import Worker, captured


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the log of all habits in one process of a task."""
    worker = Worker(tmp_path_factory.mktemp("process"))
    try:
        value = worker.outcome(each_habit, isolation="process")
        assert value is None, worker.log()
        yield worker.log()
    finally:
        worker.close()


def each_habit() -> None:
    log = current.get()
    assert log is not None
    for habit in [*HEARD, *SILENT]:
        with output_capture.flushing_at_end():
            habit(f":{habit.__name__}")
        log.local_state.end()  # as at the end of the job
        log.enabled_levels.clear()


ids = {"ids": lambda value: getattr(value, "__name__", str(value))}


@pytest.mark.parametrize("habit", [*HEARD, *SILENT], **ids)
def test_logging_in_a_process_reaches_the_log_once(in_process, habit):
    assert counts(in_process, f":{habit.__name__}") == ({1} if habit in HEARD else {0})


@pytest.mark.parametrize("habit", [*HEARD, *SILENT], **ids)
def test_logging_in_a_thread_reaches_the_log_once_and_later_jobs_are_as_before(worker, habit):
    before = state_of_logging()
    result = worker.outcome(habit, "own", job_id="first")
    assert result is None, result
    assert counts(worker.log("first"), "own") == ({1} if habit in HEARD else {0})
    for n in range(4):  # as many as there are threads
        worker.outcome(say, "later", job_id=f"later{n}")
        said = "".join(f"later info {n}\nlater warning {n}\n" for n in range(TIMES))
        assert worker.log(f"later{n}") == said
    assert state_of_logging() == before


#: They meet here, so that they log at the same time.
meeting: list[threading.Barrier] = []


def meet_and(habit: Callable[[str], None], name: str) -> None:
    meeting[0].wait(30)
    habit(name)
    meeting[0].wait(30)


@pytest.mark.parametrize("habit", [*HEARD, *SILENT], **ids)
def test_logger_state_of_four_jobs_at_once_is_separate(worker, habit):
    meeting[:] = [threading.Barrier(4)]
    habits = {"a": habit, "b": habit, "c": disables_logging, "d": calls_basic_config}
    begun = [
        worker.begin(worker.run(meet_and, each, f"job-{name}", job_id=name))
        for name, each in habits.items()
    ]
    for future in begun:
        future.result(60)
    until(lambda: len(worker.ended) == 4)
    for name, each in habits.items():
        assert counts(worker.log(name), f"job-{name}") == ({1} if each in HEARD else {0})
        assert not any(f"job-{other} " in worker.log(name) for other in habits if other != name)
    assert worker.log("d").splitlines()[0] == "INFO|job-d info 0"


# -- the worker's own log ------------------------------------------------------------------


def closes_all_handlers() -> None:
    for each in logging.getLogger().handlers[:]:
        logging.getLogger().removeHandler(each)
        each.close()
    logging.basicConfig(level=logging.DEBUG, force=True)
    logging.getLogger("of.task").warning("for both")
    logging.getLogger("of.task").info("for the job")


def test_logging_of_the_worker_stays_as_it_was(tmp_path):
    handler = logging.FileHandler(tmp_path / "worker.log", mode="w")
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    worker = Worker(tmp_path)
    try:
        with captured():
            assert root.level == level
            worker.outcome(closes_all_handlers)
            logging.getLogger("of.worker").warning("later")
            logging.getLogger("of.worker").info("too fine")
            worker.close()
    finally:
        root.removeHandler(handler)
        handler.close()
    assert (tmp_path / "worker.log").read_text() == "WARNING for both\nWARNING later\n"
    assert worker.log() == "WARNING:of.task:for both\nINFO:of.task:for the job\n"


def opens_a_file(path: str) -> None:
    logging.basicConfig(filename=path)
    say("own")


def test_logger_state_closes_files_of_a_job_with_it(worker, tmp_path):
    path = tmp_path / "job.log"
    worker.outcome(opens_a_file, str(path))
    assert counts(path.read_text(), "own") == {1}
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if same(fd, path)]


def same(fd: Path, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return fd.resolve() == path
    return False


def loads_anew() -> None:
    importlib.reload(logging)
    importlib.reload(warnings)
    sys.__class__ = types.ModuleType
    logging.getLogger().warning("from another world")


def test_logger_state_restores_modules_that_a_task_reloads(worker):
    before = state_of_logging(), logging.Logger, type(sys)
    assert worker.outcome(loads_anew) is None
    assert "from another world" in worker.log()
    assert (state_of_logging(), logging.Logger, type(sys)) == before
    worker.outcome(warn_as_others, job_id="later")
    assert worker.log("later").startswith("others log\n")
    assert "UserWarning: known" in worker.log("later")


def formats_wrongly() -> None:
    logger.info("%d coins", "no")


def test_logging_reports_a_malformed_record_without_our_frames(worker):
    assert worker.outcome(formats_wrongly) is None
    log = worker.log()
    assert log.startswith("A log record cannot be formatted (TypeError: %d format")
    assert "in formats_wrongly\n  Message: '%d coins'\n  Arguments: ('no',)\n" in log
    assert "girder_dask" not in log


def redirects_while_logging() -> str:
    with contextlib.redirect_stderr(io.StringIO()) as text:
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        logger.warning("to the redirected stream")
        logger.removeHandler(handler)
        logger.propagate = False
        logger.warning("without a handler")
    return text.getvalue()


def test_logging_to_a_redirected_stream_follows_it(worker):
    value = worker.outcome(redirects_while_logging)
    assert value == "to the redirected stream\nwithout a handler\n"
    assert worker.log() == ""
