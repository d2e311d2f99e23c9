"""The notebook of the examples, run by a real kernel against a real Girder."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import girder_dask

UNTIL_OVER = """
import time
from girder_dask.client import job_card
deadline = time.monotonic() + 60
while ">success<" not in job_card._cards[coins.id].widget.value:
    assert time.monotonic() < deadline
    time.sleep(0.05)
time.sleep(0.2)  # the card sends its state to the notebook
"""
NOTEBOOK = Path(girder_dask.__file__).parents[1] / "examples" / "notebooks" / "coins.ipynb"


@pytest.fixture(scope="module")
def executed(girder_stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # A card follows its job until the connection is closed.
    last = notebook.cells[-1]
    last.source = last.source.replace("connection.close()", f"{UNTIL_OVER}\nconnection.close()")
    key = girder_stack.admin.post("api_key", parameters={"name": "notebook", "active": "true"})
    client = NotebookClient(notebook, timeout=150, kernel_name="python3")
    client.resources = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    client.execute(
        env={
            **os.environ,
            "GIRDER_URL": girder_stack.girder,
            "GIRDER_API_KEY": key["key"],
            "DASK_SCHEDULER_ADDRESS": girder_stack.scheduler,
        }
    )
    client.nb.metadata["key"] = key["key"]
    return client.nb


def shown(notebook: Any, beginning: str) -> list[Any]:
    """Return what the code cell that has this in it shows."""
    (cell,) = [c for c in notebook.cells if c.cell_type == "code" and beginning in c.source]
    return list(cell.outputs)


def value(notebook: Any, beginning: str) -> Any:
    (output,) = [o for o in shown(notebook, beginning) if o.output_type == "execute_result"]
    return ast.literal_eval(output.data["text/plain"])


def printed(notebook: Any, beginning: str) -> str:
    outputs = shown(notebook, beginning)
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not c.outputs and not c.execution_count for c in notebook.cells if "outputs" in c)


def test_the_values_are_right(executed: Any) -> None:
    assert value(executed, "coins.get(")["objects"] == 24
    assert 0 < value(executed, "def brightness") < 1
    values = value(executed, "brightness.map")
    assert list(values) == ["coins.png", "camera.png", "moon.png", "text.png"]
    assert value(executed, "brightest.delay") == max(values, key=values.get)
    assert printed(executed, "JobResult(") == f"SUCCESS {max(values, key=values.get)}\n"


def test_jobs_come_as_they_end(executed: Any) -> None:
    lines = printed(executed, "in as_completed").splitlines()
    assert len(lines) == 4
    assert all(re.fullmatch(r"\w+\.png: \d+% bright", line) for line in lines)


def test_an_error_comes_back(executed: Any) -> None:
    assert printed(executed, "except JobFailed").startswith("FileNotFoundError: ")


def test_a_job_is_a_card_that_followed_it(executed: Any) -> None:
    (output,) = shown(executed, "coins = count_coins.delay")
    assert output.data["text/plain"].startswith("<JobResult ")
    assert "Count coins.png" in output.data["text/html"]
    model = output.data["application/vnd.jupyter.widget-view+json"]["model_id"]
    widgets = executed.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    last = widgets[model]["state"]["value"]
    assert ">success<" in last
    assert "24 objects" in last


def test_gather_shows_a_bar(executed: Any) -> None:
    outputs = shown(executed, "brightness.map")
    (bar,) = [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert "4/4" in bar.data["text/plain"] or "0/4" in bar.data["text/plain"]


def test_no_key_is_in_it(executed: Any) -> None:
    key = executed.metadata["key"]
    assert len(key) > 20
    assert nbformat.writes(executed).count(key) == 1, "only where this test put it"
