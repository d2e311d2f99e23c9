"""``girder-dask demo``, run as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import girder_client
import girder_coins
import numpy as np
import psutil
import pytest
from scipy import ndimage
from skimage import io

from girder_dask.cli.demo import run_demo
from girder_dask.errors import GirderDaskError

GIRDER_DASK = str(Path(sysconfig.get_path("scripts")) / "girder-dask")
ORANGE = (255, 64, 0)
STATES = ["QUEUED", "FETCHING_INPUT", "RUNNING", "PUSHING_OUTPUT", "SUCCESS"]
LOG = [
    "coins.png: 384 x 303 pixels",
    "33.5% of the picture is foreground",
    "24 objects, median diameter 43.7 pixels",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all the runs, so that later ones find the data of the first."""
    return tmp_path_factory.mktemp("demo")


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [GIRDER_DASK, "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, env=env)


def check_document(document: dict[str, Any]) -> None:
    assert "error" not in document
    job = document["job"]
    assert job["status"] == "SUCCESS"
    assert job["title"] == "Count coins in coins.png"
    assert [s["status"] for s in job["states"]] == STATES
    seconds = [s["seconds"] for s in job["states"]]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    assert job["log"].splitlines()[:3] == LOG
    assert job["progress"] == {"current": 4, "total": 4, "message": "Found 24 objects"}
    assert document["answer"]["objects"] == 24
    assert document["urls"]["dashboard"].count("/status") == 1
    assert document["urls"]["job"].endswith(f"/#job/{job['id']}")
    assert document["picture"]["url"].endswith(f"/#item/{document['picture']['item']}")


def check_drawing(path: Path) -> None:
    """The drawing is the picture, with 24 closed outlines on it."""
    drawing = io.imread(path)
    assert drawing.shape == (303, 384, 3)
    outlines = (drawing == ORANGE).all(axis=-1)
    objects, count = ndimage.label(ndimage.binary_fill_holes(outlines))
    assert count == 24
    assert np.bincount(objects.ravel())[1:].min() > 1000  # pixels
    assert np.ptp(drawing[~outlines], axis=-1).max() == 0  # the rest is as grey as it was


def test_json_mode_prints_one_document_with_the_answer(directory: Path) -> None:
    done = run("--json", "--dir", str(directory))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check_document(document)
    assert document["picture"]["name"] == "coins-outlines.png"
    copy = Path(document["picture"]["path"])
    assert copy.parent == directory
    assert copy.stat().st_size == document["picture"]["bytes"]
    check_drawing(copy)
    assert "password" not in document
    assert json.loads((directory / "stack.json").read_text())["pids"] == {}


def test_text_mode_shows_states_progress_log_and_answer(directory: Path) -> None:
    done = run("--dir", str(directory))
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    states = [line.split()[-1] for line in lines if line.split()[1:2] == ["s"]]
    assert states == STATES
    assert [line[2:] for line in lines if line.startswith("| ")][:3] == LOG
    assert "100% Found 24 objects" in lines
    (answer,) = (line for line in lines if line.startswith("Answer"))
    assert "24 objects" in answer
    (job,) = (line for line in lines if line.startswith("Job"))
    assert "/#job/" in job
    assert f"{directory / 'coins-outlines.png'}" in done.stdout
    assert "password" not in done.stdout


def test_keep_leaves_the_stack_running_until_it_is_interrupted(directory: Path) -> None:
    process = subprocess.Popen(
        [GIRDER_DASK, "demo", "--json", "--keep", "--dir", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line == "}\n":
                break
        document = json.loads(text)
        check_document(document)
        pids = json.loads((directory / "stack.json").read_text())["pids"]
        client = girder_client.GirderClient(apiUrl=document["urls"]["api"])
        client.authenticate(document["login"], document["password"])
        assert client.get(f"job/{document['job']['id']}")["status"] == 3
        item = client.getItem(document["picture"]["item"])
        assert item["size"] == document["picture"]["bytes"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    assert pids
    assert [pid for pid in pids.values() if psutil.pid_exists(pid)] == []


def test_a_job_that_fails_is_explained_and_its_logs_are_kept(tmp_path: Path) -> None:
    package = Path(girder_coins.__file__).parent
    broken = shutil.copytree(package, tmp_path / "broken" / package.name)
    with (broken / "segmentation.py").open("a") as f:
        f.write("\n\ndef read(path):\n    raise OSError('not a picture')\n")
    environment = {**os.environ, "PYTHONPATH": str(broken.parent), "TMPDIR": str(tmp_path)}
    done = run("--json", env=environment)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["job"]["status"] == "ERROR"
    assert document["job"]["log"].endswith("OSError: not a picture\n")
    assert document["error"] == "The job ended in ERROR."
    assert document["picture"] is None
    message = done.stderr[done.stderr.index("Error: The job ended in ERROR.") :]
    assert "OSError: not a picture" in message
    (directory,) = tmp_path.glob("girder-dask-demo-*")
    assert f"The logs of the stack are in {directory / 'logs'}" in message
    assert (directory / "logs" / "girder.log").stat().st_size > 0


def test_without_the_example_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "girder_coins", None)
    with pytest.raises(GirderDaskError, match=r"pip install \. '\./examples/coins"):
        run_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_picture_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(GirderDaskError, match="has no picture"):
        run_demo(tmp_path, image="nothing.png")
    assert list(tmp_path.iterdir()) == []
