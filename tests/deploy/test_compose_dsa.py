"""The variant ``dsa`` of ``deploy/compose``: a CLI of slicer_cli_web, and a task of Girder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import girder_client
import pytest

from girder_dask.jobs import FINAL, JobStatus
from tests.support.compose_site import ComposeSite, wait_until
from tests.support.deploy_engine import DeployEngine
from tests.support.docker_engine import IMAGE
from tests.support.network_hosts import NetworkHosts

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

CLI = "counting/tools:1"
XML = """<?xml version="1.0" encoding="UTF-8"?>
<executable>
  <category>Tests</category><title>Count lines</title>
  <description>Counts the lines of a file.</description><version>1.0</version>
  <parameters>
    <label>Files</label><description>What is counted, and where the number goes.</description>
    <file>
      <name>inputFile</name><label>Input</label><description>The input.</description>
      <channel>input</channel><index>0</index>
    </file>
    <file fileExtensions=".txt">
      <name>outputFile</name><label>Output</label><description>The number.</description>
      <channel>output</channel><index>1</index>
    </file>
  </parameters>
</executable>
"""
SCRIPT = """#!/bin/sh
if [ "$1" = --list_cli ]; then echo '{"Count": {"type": "shell"}}'; exit; fi
if [ "$2" = --xml ]; then cat /count.xml; exit; fi
echo "counting lines"
wc -l < "$2" > "$3"
"""


@pytest.fixture(scope="module")
def site(
    deploy_engine: DeployEngine,
    deploy_network: NetworkHosts,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComposeSite]:
    deploy_engine.add_image(IMAGE, {})
    deploy_engine.add_image(CLI, {"/run.sh": SCRIPT, "/count.xml": XML}, ['ENTRYPOINT ["/run.sh"]'])
    with tempfile.TemporaryDirectory(prefix="gd-tasks-", ignore_cleanup_errors=True) as tasks:
        os.chown(tasks, 10001, 10001)
        site = ComposeSite(
            deploy_engine,
            tmp_path_factory.mktemp("dsa") / "dsa",
            deploy_network.addresses[0],
            ("docker-compose.yml", "dsa.yml"),
            DOCKER_SOCKET=str(deploy_engine.socket),
            DOCKER_GROUP=str(deploy_engine.socket.stat().st_gid),
            TASKS_DIRECTORY=tasks,
        )
        try:
            site.up()
            yield site
        finally:
            site.down("--volumes")


def ended(admin: girder_client.GirderClient, job_id: str) -> dict[str, Any]:
    """Return a job when it has ended well."""

    def look() -> Any:
        job = admin.get(f"job/{job_id}")
        return job if job["status"] in FINAL else None

    job = wait_until(look, "the job ends", 120)
    assert job["status"] == JobStatus.SUCCESS, "".join(job["log"] or [])
    return dict(job)


def private_folder(admin: girder_client.GirderClient) -> dict[str, Any]:
    me = admin.get("user/me")["_id"]
    return next(iter(admin.listFolder(me, parentFolderType="user", name="Private")))


def test_dsa_runs_a_cli_in_a_container(
    site: ComposeSite, admin: girder_client.GirderClient, tmp_path: Path
) -> None:
    collection = admin.createCollection("Tools", public=True)
    folder = admin.createFolder(collection["_id"], "CLIs", parentType="collection", public=True)
    parameters = {"name": CLI, "folder": folder["_id"]}
    ended(admin, admin.put("slicer_cli_web/docker_image", parameters=parameters)["_id"])
    (cli,) = admin.get("slicer_cli_web/cli")
    path = tmp_path / "three"
    path.write_text("x\n" * 3)
    private = private_folder(admin)
    file = admin.uploadFileToFolder(private["_id"], str(path))
    parameters = {
        "inputFile": file["_id"],
        "outputFile": "count.txt",
        "outputFile_folder": private["_id"],
    }
    started = admin.post(f"slicer_cli_web/cli/{cli['_id']}/run", parameters=parameters)
    job = ended(admin, started["_id"])
    assert job["handler"] == "dask_handler"
    assert "counting lines" in "".join(job["log"])
    (item,) = admin.listItem(private["_id"], name="count.txt")
    (output,) = admin.listFile(item["_id"])
    assert b"".join(admin.downloadFileAsIterator(output["_id"])) == b"3\n"


def test_dsa_runs_tasks_of_the_queue_local(
    site: ComposeSite, admin: girder_client.GirderClient
) -> None:
    private = private_folder(admin)
    folder = admin.createFolder(private["_id"], "original")
    admin.createItem(folder["_id"], "an item")
    admin.post(f"folder/{folder['_id']}/copy", parameters={"name": "copy"})
    copy = wait_until(
        lambda: next(iter(admin.listFolder(private["_id"], name="copy")), None), "the copy", 60
    )
    wait_until(lambda: list(admin.listItem(copy["_id"])), "its item", 60)
    (job,) = [
        each
        for each in admin.get("job/all", parameters={"limit": 0})
        if "copy" in each["title"].lower()
    ]
    assert ended(admin, job["_id"])["handler"] == "dask_handler"


def test_dsa_has_no_rabbitmq_and_no_celery(site: ComposeSite) -> None:
    names = {each["Config"]["Labels"]["com.docker.compose.service"] for each in site.containers()}
    assert names == {
        *("accounts", "girder", "mongo", "proxy", "redis", "scheduler", "setup"),
        *("worker", "worker-local"),
    }
