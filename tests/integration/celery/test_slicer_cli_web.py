"""slicer_cli_web from PyPI on Dask: images of CLIs, runs, batches, cancels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId

from girder_dask.jobs import JobStatus
from tests.support.celery_site import wait_until
from tests.support.package_site import PackageSite

_IMAGE = "counting/tools:1"
_LINES = 300
_XML = """<?xml version="1.0" encoding="UTF-8"?>
<executable>
  <category>Tests</category>
  <title>Count lines</title>
  <description>Counts the lines of a file.</description>
  <version>1.0</version>
  <parameters>
    <label>Files</label>
    <description>What is counted, and where the number goes.</description>
    <file>
      <name>inputFile</name><label>Input</label><description>The input.</description>
      <channel>input</channel><index>0</index>
    </file>
    <file fileExtensions=".txt">
      <name>outputFile</name><label>Output</label><description>The number.</description>
      <channel>output</channel><index>1</index>
    </file>
    <integer>
      <name>seconds</name><label>Seconds</label><description>How long it takes.</description>
      <longflag>seconds</longflag><default>0</default>
    </integer>
  </parameters>
</executable>
"""
_SCRIPT = f"""#!/bin/sh
if [ "$1" = --list_cli ]; then echo '{{"Count": {{"type": "shell"}}}}'; exit; fi
if [ "$2" = --xml ]; then cat /count.xml; exit; fi
[ "$2" = --seconds ] && seconds=$3 && shift 2
echo '<filter-name>Count</filter-name><filter-comment>counting</filter-comment>'
echo '<filter-progress>0.25</filter-progress>'
for i in $(seq {_LINES}); do echo "$(basename "$2") has line $i"; done
echo 'to stderr' >&2
sleep "${{seconds:-0}}"
wc -l < "$2" > "$3"
echo '<filter-progress>1</filter-progress>'
"""


@pytest.fixture(autouse=True)
def _nothing_is_left(package_site: PackageSite) -> Iterator[None]:
    before = package_site.temporary_files()
    yield
    package_site.check_nothing_left(before)


@pytest.fixture(scope="module")
def slicer(package_site: PackageSite) -> dict[str, Any]:
    """The CLI of an image that was ingested, with the ingesting job and folders for its files."""
    package_site.require("slicer_cli_web")
    files = {"/run.sh": _SCRIPT, "/count.xml": _XML}
    package_site.engine.add_image(_IMAGE, files, ['ENTRYPOINT ["/run.sh"]'])
    admin = package_site.admin
    collection = admin.createCollection("Tools", public=True)
    folder = admin.createFolder(collection["_id"], "CLIs", parentType="collection", public=True)
    parameters = {"name": _IMAGE, "folder": folder["_id"]}
    job = admin.put("slicer_cli_web/docker_image", parameters=parameters)
    package_site.wait(job["_id"], status=JobStatus.SUCCESS)
    (cli,) = admin.get("slicer_cli_web/cli")
    return {**cli, "ingest": job["_id"]}


def _run(
    site: PackageSite, cli: dict[str, Any], user: Any, name: str, lines: int, seconds: int = 0
) -> dict[str, Any]:
    """Run the CLI on a new file, and return the answer of the route."""
    file = site.upload(b"x\n" * lines, name, client=user.client)
    parameters = {
        "inputFile": file["_id"],
        "outputFile": f"{name}.count.txt",
        "outputFile_folder": user.folder["_id"],
        "seconds": seconds,
    }
    answer = user.client.post(f"slicer_cli_web/cli/{cli['_id']}/run", parameters=parameters)
    return dict(answer)


def _output(user: Any, name: str) -> bytes:
    (item,) = user.client.listItem(user.folder["_id"], name=name)
    (file,) = user.client.listFile(item["_id"])
    return b"".join(user.client.downloadFileAsIterator(file["_id"]))


def test_ingest_lists_the_clis_of_an_image(
    package_site: PackageSite, slicer: dict[str, Any]
) -> None:
    images = package_site.admin.get("slicer_cli_web/docker_image")
    assert list(images["counting/tools"]["1"]) == ["Count"]
    assert slicer["image"] == _IMAGE
    assert "Finished caching Docker image data" in package_site.log(slicer["ingest"])
    assert package_site.job(slicer["ingest"])["handler"] == "dask_handler"


def test_run_uploads_its_output_with_progress_and_log(
    package_site: PackageSite, slicer: dict[str, Any]
) -> None:
    user = package_site.create_user()
    started = _run(package_site, slicer, user, "three", 3)
    job = package_site.wait(started["_id"], status=JobStatus.SUCCESS)
    assert job["title"] == "Count lines on three"
    assert job["type"] == f"{_IMAGE}#Count"
    assert job["progress"] == {"total": 1, "current": 1, "message": "counting"}
    assert [line for line in _lines(package_site, job) if line != "to stderr"] == [
        f"three has line {n}" for n in range(1, _LINES + 1)
    ]
    assert _output(user, "three.count.txt") == b"3\n"
    (stored,) = package_site.documents("job", {"_id": ObjectId(job["_id"])})
    assert package_site.tokens_of(job["_id"]) == []
    # slicer saved its copy of the whole document after the job had been queued.
    assert stored["_original_name"] == "Count"
    assert [each["status"] for each in job["timestamps"]] == [1, 2, 3]


def _lines(site: PackageSite, job: dict[str, Any]) -> list[str]:
    return [line for line in site.container_log(job["_id"]).splitlines() if line]


def test_runs_side_by_side_have_whole_logs(
    package_site: PackageSite, slicer: dict[str, Any]
) -> None:
    user = package_site.create_user()
    names = {f"file-{n}": n + 1 for n in range(8)}
    jobs = {name: _run(package_site, slicer, user, name, lines) for name, lines in names.items()}
    for name, job in jobs.items():
        package_site.wait(job["_id"], timeout=60, status=JobStatus.SUCCESS)
        lines = _lines(package_site, job)
        assert lines.count("to stderr") == 1
        assert [line for line in lines if line != "to stderr"] == [
            f"{name} has line {n}" for n in range(1, _LINES + 1)
        ]
        assert _output(user, f"{name}.count.txt") == b"%d\n" % names[name]


def test_batch_runs_the_cli_on_each_file_of_a_folder(
    package_site: PackageSite, slicer: dict[str, Any]
) -> None:
    user = package_site.create_user()
    inputs = user.client.createFolder(user.folder["_id"], "inputs")
    for n in (1, 2, 3):
        name = f"input-{n}"
        package_site.upload(b"x\n" * n, name, client=user.client, folder=inputs["_id"])
    parameters = {
        "inputFile": "^input-",
        "inputFile_folder": inputs["_id"],
        "outputFile": "{{parameter_inputFile_base}}.count.txt",
        "outputFile_folder": user.folder["_id"],
    }
    batch = user.client.post(f"slicer_cli_web/cli/{slicer['_id']}/run", parameters=parameters)
    package_site.wait(batch["_id"], timeout=60, status=JobStatus.SUCCESS)
    for job in package_site.documents("job", {"userId": ObjectId(user.id)}):
        package_site.wait(str(job["_id"]), status=JobStatus.SUCCESS)
    for n in (1, 2, 3):
        assert _output(user, f"input-{n}.count.txt") == b"%d\n" % n


def test_cancel_stops_the_container_of_a_run(
    package_site: PackageSite, slicer: dict[str, Any]
) -> None:
    user = package_site.create_user()
    started = _run(package_site, slicer, user, "slow", 1, seconds=60)
    wait_until(lambda: f"line {_LINES}" in package_site.log(started["_id"]))
    user.client.put(f"job/{started['_id']}/cancel")
    package_site.wait(started["_id"], status=JobStatus.CANCELED)
    assert list(user.client.listItem(user.folder["_id"], name="slow.count.txt")) == []
