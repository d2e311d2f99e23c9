"""What a job sets of ``warnings`` concerns that job, and its warnings are in its log."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask.worker.job_log.log import current
from tests.support.deadline import until
from tests.support.run_worker import Worker, captured

TIMES = 3


def warn(name: str, category: type[Warning] = UserWarning) -> None:
    for _ in range(TIMES):
        warnings.warn(f"{name} warns", category, stacklevel=1)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    # pytest records the warnings of each test: here they are shown as in a process of its own.
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("default")
        opened = Worker(tmp_path)
        with captured():
            yield opened
            opened.close()
    meeting.clear()


#: They meet here, so that they do it at the same time.
meeting: list[threading.Barrier] = []


def meet() -> None:
    for barrier in meeting:
        barrier.wait(30)


# -- habits --------------------------------------------------------------------------------

# Each returns how often its warning is to be in the log.


def does_nothing(name: str) -> int:
    warn(name)
    return 1


def ignores_all(name: str) -> int:
    warnings.filterwarnings("ignore")
    warn(name)
    return 0


def ignores_by_simplefilter(name: str) -> int:
    warnings.simplefilter("ignore", UserWarning)
    warn(name)
    return 0


def shows_always(name: str) -> int:
    warnings.simplefilter("always")
    warn(name)
    return TIMES


def shows_by_default(name: str) -> int:
    warnings.simplefilter("default")
    warn(name)
    return 1


def shows_once(name: str) -> int:
    warnings.simplefilter("once")
    warn(name)
    warnings.warn(f"{name} warns", UserWarning, stacklevel=1)  # the same elsewhere
    return 1


def shows_once_a_module(name: str) -> int:
    warnings.filterwarnings("module", category=UserWarning, module="test_warning")
    warn(name)
    warnings.warn(f"{name} warns", UserWarning, stacklevel=1)
    return 1


def raises(name: str) -> int:
    warnings.simplefilter("error")
    with pytest.raises(UserWarning):
        warn(name)
    return 0


def records(name: str) -> int:
    with warnings.catch_warnings(record=True) as seen:
        meet()
        warnings.simplefilter("always")
        warn(name)
        meet()
    assert [str(each.message) for each in seen] == [f"{name} warns"] * TIMES
    return 0


def records_twice(name: str) -> int:
    for _ in range(2):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("default")
            warn(name)
        assert len(seen) == 1
    warn(name)
    return 1


def records_and_never_ends(name: str) -> int:
    warnings.catch_warnings(record=True).__enter__()
    warn(name)
    return 0


def captures_into_logging(name: str) -> int:
    logging.captureWarnings(True)
    warn(name)
    assert logging.getLogger("py.warnings").handlers
    return 1


def captures_for_a_while(name: str) -> int:
    logging.captureWarnings(True)
    logging.captureWarnings(False)
    warn(name)
    return 1


def replaces_showwarning(name: str) -> int:
    seen: list[Any] = []
    warnings.showwarning = lambda *args, **_: seen.append(args)
    warn(name)
    assert len(seen) == 1
    return 0


def adds_to_showwarning(name: str) -> int:
    earlier = warnings.showwarning
    warnings.showwarning = lambda *args, **_: earlier(*args)
    warn(name)
    return 1


def replaces_formatwarning(name: str) -> int:
    warnings.formatwarning = lambda message, *_, **__: f"[{message}]\n"
    warn(name)
    return 1


def replaces_warn(name: str) -> int:
    warnings.warn = lambda *_, **__: None  # type: ignore[assignment]
    warn(name)
    return 0


def resets(name: str) -> int:
    warnings.filterwarnings("ignore")
    warnings.resetwarnings()
    warn(name)
    return 1


def empties_the_filters(name: str) -> int:
    warnings.filterwarnings("ignore")
    warnings.filters = []  # type: ignore[misc]
    warn(name)
    return 1


def appends(name: str) -> int:
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("error", append=True)
    warn(name)
    return 0


def warns_in_a_thread(name: str) -> int:
    warnings.simplefilter("always")
    thread = threading.Thread(target=warn, args=(name,))
    thread.start()
    thread.join()
    return TIMES


HABITS: list[Callable[[str], int]] = [
    does_nothing,
    ignores_all,
    ignores_by_simplefilter,
    shows_always,
    shows_by_default,
    shows_once,
    shows_once_a_module,
    raises,
    records,
    records_twice,
    records_and_never_ends,
    captures_into_logging,
    captures_for_a_while,
    replaces_showwarning,
    adds_to_showwarning,
    replaces_formatwarning,
    replaces_warn,
    resets,
    empties_the_filters,
    appends,
    warns_in_a_thread,
]

habits = pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.__name__)


def shown(log: str, name: str) -> int:
    return log.count(f"UserWarning: {name} warns") or log.count(f"[{name} warns]")


def later_jobs_warn(worker: Worker) -> None:
    for n in range(4):  # as many as there are threads
        assert worker.outcome(does_nothing, "later", job_id=f"later{n}") == 1
        assert shown(worker.log(f"later{n}"), "later") == 1


@habits
def test_a_habit_in_a_thread_leaves_later_jobs_as_before(worker, habit):
    before = dict(vars(warnings)), list(warnings.filters)
    count = worker.outcome(habit, "own", job_id="first")
    assert isinstance(count, int), count
    assert shown(worker.log("first"), "own") == count
    later_jobs_warn(worker)
    assert (dict(vars(warnings)), list(warnings.filters)) == before


def all_habits() -> dict[str, int]:
    log = current.get()
    assert log is not None
    found = {}
    for habit in HABITS:
        found[habit.__name__] = habit(f":{habit.__name__}")
        log.local_state.end()  # as at the end of the job
    return found


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, int], str]]:
    """Give what each habit expects in one process of a task, and the log of all."""
    worker = Worker(tmp_path_factory.mktemp("process"))
    try:
        value = worker.outcome(all_habits, isolation="process")
        assert isinstance(value, dict), worker.log()
        yield value, worker.log()
    finally:
        worker.close()


@habits
def test_a_habit_in_a_process_of_its_own(in_process, habit):
    counts, log = in_process
    assert shown(log, f":{habit.__name__}") == counts[habit.__name__]


def test_two_that_record_at_the_same_time_spoil_nothing(worker):
    meeting[:] = [threading.Barrier(2)]
    begun = [worker.begin(worker.run(records, name, job_id=name)) for name in ("a", "b")]
    assert [future.result(30) for future in begun] == [0, 0]
    until(lambda: len(worker.ended) == 2)
    meeting.clear()
    later_jobs_warn(worker)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warn("outside")
    assert len(seen) == TIMES


def test_warnings_outside_of_jobs_are_as_without_us(worker):
    worker.outcome(ignores_all, "own")
    with warnings.catch_warnings(record=True) as seen:
        warn("outside")
    assert len(seen) == 1


def test_a_python_that_keeps_filters_elsewhere_leads_warnings_to_the_log():
    code = """
import sys, warnings
from girder_dask.worker.capture import output_capture
from girder_dask.worker.job_log.log import JobLog
sys.version_info = (3, 14, 0, "final", 0)
output_capture.install()
log = JobLog()
with output_capture.capturing_run(log):
    warnings.warn("own warns")
    with warnings.catch_warnings(record=True) as seen:
        warnings.warn("seen")
assert log.take().count("UserWarning: own warns") == 1
assert len(seen) == 1
assert type(warnings).__name__ == "module"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
