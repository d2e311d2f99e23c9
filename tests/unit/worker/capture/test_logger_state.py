"""What a task logs is in its log, once, whatever it or others have set of ``logging``.

Each habit logs the records that the test names: by the function ``say``, at INFO and WARNING.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import logging.config
import logging.handlers
import queue
import subprocess
import sys
import threading
import time
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask.worker.capture import output_capture
from girder_dask.worker.job_log.log import current
from tests.support.deadline import until
from tests.support.run_worker import Worker, captured

#: A logger that was there before, as that of a module is.
logger = logging.getLogger("habits.module")

TIMES = 50


def say(name: str) -> None:
    for n in range(TIMES):
        logger.info("%s info %d", name, n)
        logger.warning("%s warning %d", name, n)


def silent_debug(name: str) -> None:
    logger.debug("%s debug", name)


# -- habits --------------------------------------------------------------------------------


def configures_nothing(name: str) -> None:
    say(name)


def has_a_null_handler(name: str) -> None:
    logger.addHandler(logging.NullHandler())
    say(name)


def has_a_null_handler_and_does_not_propagate(name: str) -> None:
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    say(name)


def does_not_propagate(name: str) -> None:
    logger.propagate = False
    say(name)


def calls_basic_config(name: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s|%(message)s")
    say(name)


def forces_basic_config(name: str) -> None:
    logging.basicConfig(level="INFO", format="%(levelname)s|%(message)s", stream=sys.stdout)
    logging.basicConfig(level="INFO", format="%(levelname)s|%(message)s", force=True)
    say(name)


def calls_basic_config_for_a_file(name: str) -> None:
    logging.basicConfig(filename="/dev/null", level=logging.DEBUG)
    say(name)


def logs_to_memory(name: str) -> None:
    text = io.StringIO()
    logger.addHandler(logging.StreamHandler(text))
    say(name)
    assert text.getvalue().count(f"{name} ") == 2 * TIMES


def has_a_handler_to_stdout(name: str) -> None:
    logger.addHandler(logging.StreamHandler(sys.stdout))
    say(name)


def has_a_handler_with_a_high_level(name: str) -> None:
    handler = logging.StreamHandler()
    handler.setLevel(logging.ERROR)
    logger.addHandler(handler)
    say(name)


CONFIG: dict[str, Any] = {
    "version": 1,
    "formatters": {"short": {"format": "%(levelname)s|%(message)s"}},
    "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "short"}},
    "root": {"level": "INFO", "handlers": ["err"]},
}


def calls_dict_config(name: str) -> None:
    """Which disables loggers that are there already, as that of this module."""
    logging.config.dictConfig(CONFIG)
    logging.config.dictConfig(CONFIG)
    say(name)


def calls_dict_config_and_keeps_loggers(name: str) -> None:
    logging.config.dictConfig(CONFIG | {"disable_existing_loggers": False})
    say(name)


def has_a_rich_handler(name: str) -> None:
    console = importlib.import_module("rich.console").Console(width=200)
    logger.addHandler(importlib.import_module("rich.logging").RichHandler(console=console))
    logger.propagate = False
    say(name)


def redirects_logging_to_tqdm(name: str) -> None:
    logging.basicConfig(level=logging.INFO)
    with importlib.import_module("tqdm.contrib.logging").logging_redirect_tqdm():
        say(name)


def has_a_queue(name: str) -> None:
    waiting: queue.Queue[Any] = queue.Queue()
    listener = logging.handlers.QueueListener(waiting, logging.StreamHandler())
    logger.addHandler(logging.handlers.QueueHandler(waiting))
    listener.start()
    say(name)
    listener.stop()


def has_a_queue_that_it_forgets(name: str) -> None:
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    logger.addHandler(logging.handlers.QueueHandler(waiting))
    logger.addHandler(logging.FileHandler("/dev/null"))
    logging.handlers.QueueListener(waiting, logging.StreamHandler()).start()
    say(name)


def has_a_queue_to_a_file(name: str) -> None:
    waiting: queue.Queue[Any] = queue.Queue()
    listener = logging.handlers.QueueListener(waiting, logging.FileHandler("/dev/null"))
    logger.addHandler(logging.handlers.QueueHandler(waiting))
    listener.start()
    say(name)
    listener.stop()


def has_a_queue_and_a_stream(name: str) -> None:
    waiting: queue.Queue[Any] = queue.Queue()
    listener = logging.handlers.QueueListener(waiting, logging.FileHandler("/dev/null"))
    logger.addHandler(logging.handlers.QueueHandler(waiting))
    logger.addHandler(logging.StreamHandler())
    listener.start()
    say(name)
    listener.stop()


def has_a_queue_that_nobody_reads(name: str) -> None:
    logger.addHandler(logging.handlers.QueueHandler(queue.Queue()))
    say(name)


def has_a_memory_handler(name: str) -> None:
    target = logging.StreamHandler()
    logger.addHandler(logging.handlers.MemoryHandler(7, logging.ERROR, target))
    say(name)


def uses_assert_logs(name: str) -> None:
    with unittest.TestCase().assertLogs(logger, "INFO") as caught:
        say(name)
    assert len(caught.records) == 2 * TIMES


def logs_in_threads(name: str) -> None:
    thread = threading.Thread(target=say, args=(name,))
    thread.start()
    thread.join()


def shuts_logging_down(name: str) -> None:
    logging.basicConfig(level=logging.INFO)
    logging.shutdown()
    say(name)


def has_a_record_factory(name: str) -> None:
    earlier = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = earlier(*args, **kwargs)
        record.place = "here"
        return record

    logging.setLogRecordFactory(factory)
    logging.basicConfig(level=logging.INFO, format="%(place)s|%(message)s")
    say(name)


def sets_constants(name: str) -> None:
    logging.raiseExceptions = False
    logging.lastResort = None
    logging.Formatter.converter = time.gmtime  # type: ignore[assignment]
    say(name)


def has_a_logger_of_its_own(name: str) -> None:
    own = logging.Logger("nobody.finds.it")  # noqa: LOG001
    own.addHandler(logging.StreamHandler(sys.stdout))
    own.info("%s own", name)
    assert not logging.getLogger("habits").disabled
    say(name)


def enables_the_root_logger_again(name: str) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    logging.disable(logging.CRITICAL)
    logger.error("%s info", name)
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.NOTSET)
    say(name)


def renames_levels(name: str) -> None:
    logging.addLevelName(logging.WARNING, "[33mWARNING[0m")
    logging.addLevelName(7, "SEVEN")
    logging.basicConfig(level="INFO", format="%(levelname)s|%(message)s")
    assert logging.getLevelName(logging.WARNING).startswith("[33m")
    logger.setLevel("SEVEN")
    say(name)
    logger.log(7, "%s seven", name)


class PassesOn(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("passed.on").handle(record)


def passes_records_on(name: str) -> None:
    logger.addHandler(PassesOn())
    logger.propagate = False
    say(name)


class Sends(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("of.transport").warning("sent %d characters", len(record.getMessage()))


def has_a_handler_that_logs(name: str) -> None:
    logger.addHandler(Sends())
    logger.propagate = False
    say(name)


class LoudLogger(logging.Logger):
    def info(self, message: object, *args: object, **_: Any) -> None:
        super().info(str(message).upper(), *args)


def sets_a_logger_class(name: str) -> None:
    logging.setLoggerClass(LoudLogger)
    assert logging.getLoggerClass() is LoudLogger
    assert isinstance(logging.getLogger(f"loud.{name}"), LoudLogger)
    say(name)


#: Habits after which each record is in the job's log once.
HEARD = [
    configures_nothing,
    has_a_null_handler,
    has_a_null_handler_and_does_not_propagate,
    does_not_propagate,
    calls_basic_config,
    forces_basic_config,
    calls_basic_config_for_a_file,
    logs_to_memory,
    has_a_handler_to_stdout,
    has_a_handler_with_a_high_level,
    calls_dict_config,
    calls_dict_config_and_keeps_loggers,
    has_a_rich_handler,
    redirects_logging_to_tqdm,
    has_a_queue,
    has_a_queue_that_it_forgets,
    has_a_queue_to_a_file,
    has_a_queue_and_a_stream,
    has_a_queue_that_nobody_reads,
    has_a_memory_handler,
    uses_assert_logs,
    logs_in_threads,
    shuts_logging_down,
    has_a_record_factory,
    sets_constants,
    renames_levels,
    sets_a_logger_class,
    passes_records_on,
    has_a_handler_that_logs,
    has_a_logger_of_its_own,
    enables_the_root_logger_again,
]


def disables_logging(name: str) -> None:
    logging.disable(logging.CRITICAL)
    say(name)


def disables_a_logger(name: str) -> None:
    logger.disabled = True
    say(name)


def sets_a_high_level(name: str) -> None:
    logger.setLevel(logging.ERROR)
    say(name)


def sets_a_high_level_at_the_root(name: str) -> None:
    logging.getLogger().setLevel(logging.CRITICAL)
    say(name)


def filters_all(name: str) -> None:
    logger.addFilter(lambda _: False)
    say(name)


#: Habits of a task that asks for silence.
SILENT = [
    disables_logging,
    disables_a_logger,
    sets_a_high_level,
    sets_a_high_level_at_the_root,
    filters_all,
]


def counts(log: str, name: str) -> set[int]:
    """Return how often each record of a name is in a log."""
    lines = [f"{line} " for line in log.splitlines() if f"{name} " in line]
    said = [f"{name} {kind} {n} " for kind in ("info", "warning") for n in range(TIMES)]
    return {sum(each in line for line in lines) for each in said}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    opened = Worker(tmp_path)
    with captured():
        yield opened
        opened.close()


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
def test_in_a_process_each_record_is_in_the_log_once(in_process, habit):
    assert counts(in_process, f":{habit.__name__}") == ({1} if habit in HEARD else {0})


@pytest.mark.parametrize("habit", [*HEARD, *SILENT], **ids)
def test_in_a_thread_each_record_is_in_the_log_once_and_later_jobs_are_as_before(worker, habit):
    before = state_of_logging()
    result = worker.outcome(habit, "own", job_id="first")
    assert result is None, result
    assert counts(worker.log("first"), "own") == ({1} if habit in HEARD else {0})
    for n in range(4):  # as many as there are threads
        worker.outcome(say, "later", job_id=f"later{n}")
        said = "".join(f"later info {n}\nlater warning {n}\n" for n in range(TIMES))
        assert worker.log(f"later{n}") == said
    assert state_of_logging() == before


def state_of_logging() -> Any:
    root = logging.getLogger()
    return (
        [(each.level, each.handlers, each.filters, each.disabled) for each in (root, logger)],
        logger.propagate,
        root.manager.disable,
        logging.lastResort,
        logging.raiseExceptions,
        logging.Formatter.converter,
        logging.getLogRecordFactory(),
        logging.getLoggerClass(),
        logging.getLevelName(logging.WARNING),
    )


#: They meet here, so that they log at the same time.
meeting: list[threading.Barrier] = []


def meet_and(habit: Callable[[str], None], name: str) -> None:
    meeting[0].wait(30)
    habit(name)
    meeting[0].wait(30)


@pytest.mark.parametrize("habit", [*HEARD, *SILENT], **ids)
def test_four_at_once_keep_out_of_each_others_way(worker, habit):
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


# -- what modules set while they are imported ----------------------------------------------

LIBRARY = """
import logging, warnings
logging.getLogger(__name__).setLevel(logging.ERROR)
logging.getLogger("NAME_other").setLevel(logging.CRITICAL)
logging.basicConfig(format="first job|%(message)s")
class OwnWarning(UserWarning): pass
warnings.simplefilter("ignore", OwnWarning)
warnings.filterwarnings("ignore")
def speak():
    logging.getLogger(__name__).warning("library warning")
    logging.getLogger(__name__).error("library error")
    warnings.warn("own", OwnWarning)
"""

TASKS = """
import logging, warnings
from girder_dask import task
logging.basicConfig(level=logging.DEBUG, format="<%(levelname)s %(message)s>")
warnings.filterwarnings("ignore", message="known")
logger = logging.getLogger(__name__)
@task
def speak():
    logger.debug("fine")
    logger.info("said")
    warnings.warn("known")
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a library and a package of tasks, which are not imported yet, and return their name."""
    name = f"habits_{tmp_path.name.rpartition('_')[2]}"
    for package, text in ((f"{name}_lib", LIBRARY), (f"{name}_tasks", TASKS)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(text.replace("NAME", name))
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_what_the_module_of_a_task_sets_at_import_holds_for_its_jobs(worker, packages):
    before = state_of_logging()
    task = f"{packages}_tasks:speak"
    for n in range(5):
        assert worker.outcome(None, task=task, job_id=f"job{n}") is None
        assert worker.log(f"job{n}") == "<DEBUG fine>\n<INFO said>\n"
    assert state_of_logging() == before
    worker.outcome(warn_as_others, job_id="other")
    assert worker.log("other").startswith("others log\n")
    assert "UserWarning: known" in worker.log("other")


def warn_as_others() -> None:
    logging.getLogger("others").info("others log")
    warnings.warn("known", stacklevel=1)


def use_library(name: str) -> None:
    importlib.import_module(f"{name}_lib").speak()
    logging.getLogger(f"{name}_other").info("%s other", name)


def test_what_a_library_sets_at_import_for_itself_holds_for_all_jobs(worker, packages):
    for n in range(5):
        assert worker.outcome(use_library, packages, job_id=f"job{n}") is None
    first = worker.log("job0")
    assert "library warning" not in first
    assert "OwnWarning" not in first
    for n in range(1, 5):  # what it has set for others did not outlive the job that imported it
        assert worker.log(f"job{n}") == f"library error\n{packages} other\n"
    worker.outcome(warn_as_others, job_id="other")
    assert "UserWarning: known" in worker.log("other")


def test_what_was_configured_before_a_process_got_its_job_is_the_jobs():
    """Modules that are imported ahead configure logging without a job."""
    code = """
import logging
logging.basicConfig(level=logging.INFO, format="ahead|%(message)s")
from girder_dask.worker.capture import output_capture
from girder_dask.worker.job_log.log import JobLog, capturing
output_capture.install()
output_capture.adopt_handlers()
log = JobLog()
with capturing(log):
    logging.getLogger("a").info("once")
assert log.take() == "ahead|once\\n", log.take()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=30, capture_output=True, text=True
    )
    assert not done.stderr


# -- the worker's own log ------------------------------------------------------------------


def closes_all_handlers() -> None:
    for each in logging.getLogger().handlers[:]:
        logging.getLogger().removeHandler(each)
        each.close()
    logging.basicConfig(level=logging.DEBUG, force=True)
    logging.getLogger("of.task").warning("for both")
    logging.getLogger("of.task").info("for the job")


def test_the_log_of_the_worker_stays_as_it_was(tmp_path):
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


def test_files_that_a_job_logs_to_are_closed_with_it(worker, tmp_path):
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


def test_modules_that_a_task_loads_anew_are_put_back(worker):
    before = state_of_logging(), logging.Logger, type(sys)
    assert worker.outcome(loads_anew) is None
    assert "from another world" in worker.log()
    assert (state_of_logging(), logging.Logger, type(sys)) == before
    worker.outcome(warn_as_others, job_id="later")
    assert worker.log("later").startswith("others log\n")
    assert "UserWarning: known" in worker.log("later")


def formats_wrongly() -> None:
    logger.info("%d coins", "no")


def test_a_record_that_cannot_be_formatted_is_told_without_our_frames(worker):
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


def test_a_redirection_takes_what_is_written_there(worker):
    value = worker.outcome(redirects_while_logging)
    assert value == "to the redirected stream\nwithout a handler\n"
    assert worker.log() == ""
