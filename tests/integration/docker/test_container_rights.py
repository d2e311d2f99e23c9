"""What those may not do with containers who may run no code of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.protocol.payload import pack_call
from girder_dask.transforms import GirderFileId, GirderUploadToFolder
from tests.integration.docker.conftest import Containers
from tests.integration.docker.test_container_jobs import contents
from tests.integration.test_permissions import configure
from tests.support.rest_site import call, submit

RUN = "girder_dask.docker:run"


@pytest.fixture(autouse=True)
def allowed(girder_admin: Any) -> Iterator[None]:
    configure(girder_admin, "dask.allow_tasks", [RUN])
    yield
    girder_admin.delete("system/setting", parameters={"key": "dask.allow_tasks"})


def run(containers: Containers, user: Any, image: str, *args: Any, **more: Any) -> dict[str, Any]:
    """Run a container as an ordinary user over REST, and return its job."""
    hooks = [GirderUploadToFolder(user.folder["_id"])]
    packed = pack_call((image, list(args)), more, hooks)
    answer = submit(containers.stack, call(RUN, payload=packed), by=user)
    assert answer.status_code == 200, answer.text
    return containers.wait(answer.json()["jobs"][0]["_id"])


def test_a_user_runs_only_images_that_the_worker_names(
    docker: Containers, girder_user: Any, settings: Any
) -> None:
    job = run(docker, girder_user, "busybox:latest", "true")
    assert job["status"] == JobStatus.ERROR
    assert "busybox:latest may not run on this worker" in "".join(job["log"])
    settings(images=["busybox:*", "other.example.org/**"])
    assert run(docker, girder_user, "busybox:latest", "true")["status"] == JobStatus.SUCCESS
    job = run(docker, girder_user, "elsewhere.example.org/busybox:latest", "true")
    assert "Those that may are: busybox:*, other.example.org/**" in "".join(job["log"])


def test_a_user_gets_no_file_of_the_host(
    docker: Containers, girder_user: Any, settings: Any, tmp_path: Any
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("of the host")
    settings(images=["busybox"])
    file = docker.stack.upload(b"mine", "mine.txt", client=girder_user.client)
    script = rf"""
    printf '%s\n' "$(cat "$1")"  # in one write: the engine may put standard error in between
    cat {secret} || echo no secret
    ln -s {secret} /outputs/stolen; ln -s mine.txt /outputs/again; cp "$1" /outputs
    mknod /outputs/disk b 8 0 || echo no device
    grep Cap /proc/self/status | sort -u -k2 | cut -f2
    grep NoNewPrivs /proc/self/status
    ls /sys/class/net
    """
    args = ["/bin/sh", "-c", script, "x", GirderFileId(file["_id"]), str(secret)]
    job = run(docker, girder_user, "busybox", *args)
    log = "".join(job["log"])
    assert job["status"] == JobStatus.SUCCESS, log
    for expected in ("mine\n", "no secret\n", "no device\n", "\n0000000000000000\n", "\nlo\n"):
        assert expected in log
    assert "NoNewPrivs:\t1" in log
    assert "/outputs/stolen is left out" in log
    assert "of the host" not in log
    sent = contents(girder_user.client, girder_user.folder["_id"])
    assert sent["again"] == sent["mine.txt"] == b"mine"
    assert "stolen" not in sent


def test_a_user_cannot_ask_for_more_than_the_worker_allows(
    docker: Containers, girder_user: Any, settings: Any
) -> None:
    settings(images=["busybox"])
    job = run(docker, girder_user, "busybox", "true", network=True)
    assert "Containers have no network on this worker" in "".join(job["log"])
    job = run(docker, girder_user, "busybox", "true", entrypoint=["sh"])
    assert "entrypoint=['sh']: give the path of a program" in "".join(job["log"])
    job = run(docker, girder_user, "busybox; rm -rf /", "true")
    assert "is not the name of an image" in "".join(job["log"])
    job = run(docker, girder_user, "busybox", "true", privileged=True)
    assert "privileged" in "".join(job["log"])
    assert job["status"] == JobStatus.ERROR
    packed = json.dumps(job)
    assert "dask.images" not in packed


def test_a_user_names_no_image_by_its_id(
    docker: Containers, girder_user: Any, settings: Any
) -> None:
    settings(images=["docker.io/library/*"], pull="never")
    image_id = docker.engine.get("/images/busybox/json")["Id"].removeprefix("sha256:")
    for name in (image_id[:12], f"sha256:{image_id}"):
        job = run(docker, girder_user, name, "true")
        assert f"does not have the image docker.io/library/{name}" in "".join(job["log"])


def test_a_pipe_among_the_outputs_does_not_hold_the_worker(
    docker: Containers, girder_user: Any, settings: Any
) -> None:
    settings(images=["busybox"])
    job = run(docker, girder_user, "busybox", "mkfifo", "/outputs/pipe", outputs="pipe")
    assert job["status"] == JobStatus.ERROR
    assert "'pipe' into /outputs, which is neither a file nor a directory" in "".join(job["log"])
    script = "cd /outputs; mkfifo pipe; echo x > file; touch \"$(printf '\\377')\"; ln -s /etc a"
    job = run(docker, girder_user, "busybox", "sh", "-c", script, outputs="missing")
    assert "It has written: file, pipe, '\\udcff'." in "".join(job["log"])
