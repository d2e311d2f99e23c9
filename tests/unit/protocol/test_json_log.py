"""Logs as JSON, with the id of the job."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import dask.config
import pytest

from girder_dask.errors import GirderDaskError
from girder_dask.protocol import json_log

JOB = "6b0d3070f9a70c9e367a508c"

SCRIPT = """
import logging, sys
if {with_root}:
    logging.basicConfig(format="text %(message)s")
    logging.getLogger("other").addHandler(logging.FileHandler("other.log"))
from girder_dask.protocol import json_log
json_log.install_if_configured()
logger = logging.getLogger("girder_dask.part")
logger.warning("Job %s is stopped", {job!r})
logger.info("seen")
try:
    raise ValueError("a\\nb")
except ValueError:
    logger.exception("The task f-%s-2 failed: \\u2028 \\"quoted\\"", {job!r})
logging.getLogger("other").warning("none")
"""


def lines(tmp_path: Any, *, with_root: bool, log_format: str = "json") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(with_root=with_root, job=JOB)],
        env={"DASK_GIRDER__LOG_FORMAT": log_format},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    return done.stderr.splitlines()


def test_json_log_is_one_object_a_line_with_the_id_of_the_job(tmp_path: Any) -> None:
    written = [json.loads(line) for line in lines(tmp_path, with_root=True)]
    assert [each.get("job") for each in written] == [JOB, JOB, None]
    stopped, failed, none = written
    assert stopped["message"] == f"Job {JOB} is stopped"
    assert (stopped["level"], stopped["logger"]) == ("WARNING", "girder_dask.part")
    assert stopped["time"].endswith("+00:00")
    assert failed["message"].endswith('failed: \u2028 "quoted"')
    assert failed["error"].endswith("ValueError: a\nb")
    assert none["logger"] == "other"
    assert (tmp_path / "other.log").read_text() == "none\n"


def test_json_log_has_a_handler_where_the_process_has_none(tmp_path: Any) -> None:
    written = lines(tmp_path, with_root=False)
    found = [json.loads(line) for line in written if line.startswith("{")]
    assert [each["level"] for each in found] == ["WARNING", "INFO", "ERROR"]


def test_log_stays_text_by_default(tmp_path: Any) -> None:
    assert lines(tmp_path, with_root=True, log_format="text")[0] == f"text Job {JOB} is stopped"


def test_log_format_must_be_known() -> None:
    with (
        dask.config.set({"girder.log-format": "xml"}),
        pytest.raises(GirderDaskError, match=r"girder\.log-format is 'xml'.*text or json"),
    ):
        json_log.install_if_configured()
