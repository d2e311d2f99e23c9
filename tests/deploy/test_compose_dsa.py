"""The variant ``dsa`` of ``deploy/compose``: a CLI of slicer_cli_web, and a task of Girder."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import girder_client
import pytest
import skimage

from girder_dask.jobs import FINAL, JobStatus
from tests.support.compose_site import ComposeSite, wait_until
from tests.support.deploy_engine import DeployEngine
from tests.support.docker_engine import IMAGE
from tests.support.network_hosts import NetworkHosts

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

IHC = Path(skimage.__file__).parent / "data" / "ihc.png"
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
if grep -q slow "$2"; then sleep 600; fi
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


def ended(
    admin: girder_client.GirderClient, job_id: str, status: JobStatus = JobStatus.SUCCESS
) -> dict[str, Any]:
    """Return a job when it has ended as it must."""

    def look() -> Any:
        job = admin.get(f"job/{job_id}")
        return job if job["status"] in FINAL else None

    job = wait_until(look, "the job ends", 120)
    assert job["status"] == status, "".join(job["log"] or [])
    return dict(job)


def private_folder(admin: girder_client.GirderClient) -> dict[str, Any]:
    me = admin.get("user/me")["_id"]
    return next(iter(admin.listFolder(me, parentFolderType="user", name="Private")))


@pytest.fixture(scope="module")
def cli(site: ComposeSite) -> str:
    """Register the image of the CLI, as an administrator does, and return the id of the CLI."""
    with site.administrator() as admin:
        collection = admin.createCollection("Tools", public=True)
        folder = admin.createFolder(collection["_id"], "CLIs", parentType="collection", public=True)
        parameters = {"name": CLI, "folder": folder["_id"]}
        ended(admin, admin.put("slicer_cli_web/docker_image", parameters=parameters)["_id"])
        (found,) = admin.get("slicer_cli_web/cli")
    return str(found["_id"])


def start(
    admin: girder_client.GirderClient, cli: str, directory: Path, text: str, output: str
) -> str:
    """Start the CLI for a file with this text, and return the id of the job."""
    path = directory / "input"
    path.write_text(text)
    private = private_folder(admin)
    file = admin.uploadFileToFolder(private["_id"], str(path), filename=f"input of {output}")
    parameters = {
        "inputFile": file["_id"],
        "outputFile": output,
        "outputFile_folder": private["_id"],
    }
    return str(admin.post(f"slicer_cli_web/cli/{cli}/run", parameters=parameters)["_id"])


def check_count(
    admin: girder_client.GirderClient, cli: str, directory: Path, output: str
) -> dict[str, Any]:
    """Count three lines with the CLI, and return the job."""
    job = ended(admin, start(admin, cli, directory, "x\n" * 3, output))
    assert "counting lines" in "".join(job["log"])
    (item,) = admin.listItem(private_folder(admin)["_id"], name=output)
    (file,) = admin.listFile(item["_id"])
    assert b"".join(admin.downloadFileAsIterator(file["_id"])) == b"3\n"
    return job


def containers_of_cli(engine: DeployEngine) -> list[dict[str, Any]]:
    return [each for each in engine.containers() if each["Image"] == CLI]


def test_dsa_runs_a_cli_in_a_container(
    site: ComposeSite, admin: girder_client.GirderClient, cli: str, tmp_path: Path
) -> None:
    job = check_count(admin, cli, tmp_path, "count.txt")
    assert job["handler"] == "dask_handler"


def test_dsa_survives_the_loss_of_the_worker_of_a_cli(
    site: ComposeSite,
    deploy_engine: DeployEngine,
    admin: girder_client.GirderClient,
    cli: str,
    tmp_path: Path,
) -> None:
    job_id = start(admin, cli, tmp_path, "slow\n", "slow.txt")
    wait_until(lambda: containers_of_cli(deploy_engine), "the container of the CLI", 120)
    for pid in site.processes("worker", "--multiprocessing-fork"):
        os.kill(pid, signal.SIGKILL)
    # A task of girder_worker runs at most once, unless it says otherwise.
    job = ended(admin, job_id, JobStatus.ERROR)
    assert "may run at most once" in "".join(job["log"])
    wait_until(lambda: not site.ailing(), "healthy again", 120)
    check_count(admin, cli, tmp_path, "after the loss.txt")


def test_dsa_starts_again_with_its_data(site: ComposeSite, cli: str, tmp_path: Path) -> None:
    with site.administrator() as admin:
        check_count(admin, cli, tmp_path, "before.txt")
        jobs = {job["_id"] for job in admin.get("job/all", parameters={"limit": 0})}
    site.down()
    assert not site.containers()
    site.up()
    with site.administrator() as admin:
        assert {job["_id"] for job in admin.get("job/all", parameters={"limit": 0})} == jobs
        assert list(admin.listItem(private_folder(admin)["_id"], name="before.txt"))
        check_count(admin, cli, tmp_path, "afterwards.txt")


def test_dsa_makes_tiles_of_an_image(site: ComposeSite, admin: girder_client.GirderClient) -> None:
    setting = {"key": "large_image.auto_set", "value": "false"}
    admin.put("system/setting", parameters=setting)
    file = admin.uploadFileToFolder(private_folder(admin)["_id"], str(IHC))
    tiles = f"item/{file['itemId']}/tiles"
    parameters = {"force": True, "localJob": False, "notify": False}
    job = ended(admin, admin.post(tiles, parameters=parameters)["_id"])
    assert job["handler"] == "dask_handler"
    wait_until(lambda: not admin.getItem(file["itemId"])["largeImage"].get("expected"), "tiles", 60)
    found = admin.get(tiles)
    assert (found["sizeX"], found["sizeY"], found["tileWidth"]) == (512, 512, 256)
    assert admin.get(f"{tiles}/zxy/1/1/1", jsonResp=False).content.startswith(b"\xff\xd8\xff")


def test_dsa_runs_tasks_of_the_queue_local(
    site: ComposeSite, admin: girder_client.GirderClient
) -> None:
    before = {job["_id"] for job in admin.get("job/all", parameters={"limit": 0})}
    private = private_folder(admin)
    folder = admin.createFolder(private["_id"], "original")
    admin.createItem(folder["_id"], "an item")
    admin.post(f"folder/{folder['_id']}/copy", parameters={"name": "copy"})
    copy = wait_until(
        lambda: next(iter(admin.listFolder(private["_id"], name="copy")), None), "the copy", 60
    )
    wait_until(lambda: list(admin.listItem(copy["_id"])), "its item", 60)
    jobs = [
        ended(admin, job["_id"])
        for job in admin.get("job/all", parameters={"limit": 0})
        if job["_id"] not in before
    ]
    (job,) = jobs
    assert job["handler"] == "dask_handler"


def test_dsa_has_no_rabbitmq_and_no_celery(site: ComposeSite) -> None:
    names = {each["Config"]["Labels"]["com.docker.compose.service"] for each in site.containers()}
    assert names == {
        *("accounts", "girder", "mongo", "proxy", "redis", "scheduler", "setup"),
        *("worker", "worker-local"),
    }
