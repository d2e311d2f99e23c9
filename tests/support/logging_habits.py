"""What tasks do with ``logging``: each habit logs the same records by :func:`say`."""

from __future__ import annotations

import importlib
import io
import logging
import logging.config
import logging.handlers
import queue
import sys
import threading
import time
import unittest
import warnings
from typing import Any

__all__ = [
    "HEARD",
    "SILENT",
    "TIMES",
    "calls_basic_config",
    "counts",
    "disables_logging",
    "logger",
    "say",
    "silent_debug",
    "state_of_logging",
    "warn_as_others",
]

#: A logger that was there before, as that of a module is.
logger = logging.getLogger("habits.module")

TIMES = 50


def say(name: str) -> None:
    for n in range(TIMES):
        logger.info("%s info %d", name, n)
        logger.warning("%s warning %d", name, n)


def silent_debug(name: str) -> None:
    logger.debug("%s debug", name)


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


def warn_as_others() -> None:
    logging.getLogger("others").info("others log")
    warnings.warn("known", stacklevel=1)
