"""What modules set while they are imported holds for the jobs that use them."""

from __future__ import annotations

import importlib
import logging
import logging.config
import logging.handlers
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.logging_habits import (
    state_of_logging,
    warn_as_others,
)

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


def test_import_time_state_of_a_task_module_holds_for_its_jobs(worker, packages):
    before = state_of_logging()
    task = f"{packages}_tasks:speak"
    for n in range(5):
        assert worker.outcome(None, task=task, job_id=f"job{n}") is None
        assert worker.log(f"job{n}") == "<DEBUG fine>\n<INFO said>\n"
    assert state_of_logging() == before
    worker.outcome(warn_as_others, job_id="other")
    assert worker.log("other").startswith("others log\n")
    assert "UserWarning: known" in worker.log("other")


def use_library(name: str) -> None:
    importlib.import_module(f"{name}_lib").speak()
    logging.getLogger(f"{name}_other").info("%s other", name)


def test_import_time_state_of_a_library_holds_for_all_jobs(worker, packages):
    for n in range(5):
        assert worker.outcome(use_library, packages, job_id=f"job{n}") is None
    first = worker.log("job0")
    assert "library warning" not in first
    assert "OwnWarning" not in first
    for n in range(1, 5):  # what it has set for others did not outlive the job that imported it
        assert worker.log(f"job{n}") == f"library error\n{packages} other\n"
    worker.outcome(warn_as_others, job_id="other")
    assert "UserWarning: known" in worker.log("other")


def test_import_time_state_of_a_process_becomes_that_of_its_job():
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
