"""girder_worker's ``docker_run`` on Dask, with each of its transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from girder_dask.jobs import FINAL, JobStatus
from tests.support.celery_site import wait_until
from tests.support.chunk_receiver import receiving_chunks
from tests.support.docker_engine import IMAGE
from tests.support.package_site import PackageSite


@pytest.fixture(autouse=True)
def _nothing_is_left(package_site: PackageSite) -> Iterator[None]:
    """Check after each test that no container, volume or directory is left."""
    before = package_site.temporary_files()
    yield
    package_site.check_nothing_left(before)


def _says(script: str) -> Callable[[], dict[str, Any]]:
    """Return a function that Girder can call, for a script of the shell."""

    def make() -> dict[str, Any]:
        return {"container_args": ["sh", "-c", script]}

    return make


def test_docker_run_prints_into_the_log(package_site: PackageSite) -> None:
    job_id = package_site.run_container(_says("echo 'hello docker!'"))
    assert package_site.container_log(job_id) == "hello docker!\n"


def test_docker_run_takes_stdout_and_stderr(package_site: PackageSite) -> None:
    job_id = package_site.run_container(_says("echo from stdout; echo from stderr >&2"))
    assert sorted(package_site.container_log(job_id).splitlines()) == ["from stderr", "from stdout"]


def test_docker_run_loses_no_output_of_short_containers(package_site: PackageSite) -> None:
    script = "for n in $(seq 20); do echo out $n; echo error $n >&2; done"
    jobs = [package_site.docker_run(_says(script)) for _ in range(12)]
    lines = {name: [f"{name} {n}" for n in range(1, 21)] for name in ("out", "error")}
    for job_id in jobs:
        package_site.wait(job_id, status=JobStatus.SUCCESS)
        log = package_site.container_log(job_id).splitlines()
        assert {name: [line for line in log if line.startswith(name)] for name in lines} == lines
        assert len(log) == 40


def test_docker_run_writes_output_that_is_no_text(package_site: PackageSite) -> None:
    job_id = package_site.run_container(_says(r"printf 'a\377b\n'"))
    assert package_site.container_log(job_id) == "a\N{REPLACEMENT CHARACTER}b\n"


def test_docker_run_sends_each_byte_of_both_streams_once(
    package_site: PackageSite, tmp_path: Path
) -> None:
    content = {"out": bytes(range(256)) * 800, "error": bytes(range(255, -1, -1)) * 800}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)

    def make(path: str, url: str) -> dict[str, Any]:
        from girder_worker.docker.transforms import BindMountVolume
        from their_tasks.streams import SentTo

        return {
            "container_args": ["sh", "-c", "cat /mnt/data/error >&2 & cat /mnt/data/out; wait"],
            "volumes": [BindMountVolume(path, "/mnt/data", mode="ro")],
            "stream_connectors": [
                SentTo("ContainerStdOut", f"{url}/out"),
                SentTo("ContainerStdErr", f"{url}/error"),
            ],
        }

    with receiving_chunks() as server:
        package_site.run_container(make, str(tmp_path), server.url)
    received = {path.lstrip("/"): body for path, _, body in server.received}
    assert {name: len(body) for name, body in received.items()} == {
        "out": 204_800,
        "error": 204_800,
    }
    assert received == content


@pytest.mark.parametrize("form", ["dict", "list"])
def test_docker_run_mounts_volumes(package_site: PackageSite, tmp_path: Path, form: str) -> None:
    (tmp_path / "read.txt").write_text("from the host\n")

    def make(path: str, form: str) -> dict[str, Any]:
        from girder_worker.docker.transforms import BindMountVolume

        volumes: Any = [BindMountVolume(path, "/mnt/test", mode="ro")]
        if form == "dict":
            volumes = {path: {"bind": "/mnt/test", "mode": "ro"}}
        return {"container_args": ["cat", "/mnt/test/read.txt"], "volumes": volumes}

    job_id = package_site.run_container(make, str(tmp_path), form)
    assert package_site.container_log(job_id) == "from the host\n"


@pytest.mark.parametrize("output", ["HostStdOut", "HostStdErr"])
def test_docker_run_reads_a_named_pipe(package_site: PackageSite, output: str) -> None:
    def make(output: str) -> dict[str, Any]:
        from girder_worker.docker import transforms

        pipe = transforms.NamedOutputPipe("pipe")
        connected = transforms.Connect(pipe, getattr(transforms, output)())
        return {"container_args": ["sh", "-c", 'echo piped > "$0"', connected]}

    job_id = package_site.run_container(make, output)
    assert package_site.container_log(job_id) == "piped\n"


@pytest.mark.parametrize("place", ["temporary volume", "bind mount"])
def test_docker_run_streams_a_file_into_a_named_pipe(
    package_site: PackageSite, tmp_path: Path, place: str
) -> None:
    user = package_site.create_user()
    content = b"".join(b"line %d\n" % n for n in range(20_000))
    file = package_site.upload(content, client=user.client)

    def make(file_id: str, path: str | None) -> dict[str, Any]:
        from girder_worker.docker import transforms
        from girder_worker.docker.transforms.girder import GirderFileIdToStream

        volumes, where = [], {}
        if path is not None:
            volumes = [transforms.BindMountVolume(path, path)]
            where = {"volume": volumes[0]}
        pipe = transforms.NamedInputPipe("pipe", **where)
        connected = transforms.Connect(GirderFileIdToStream(file_id), pipe)
        script = 'cat "$0" | md5sum'
        return {"container_args": ["sh", "-c", script, connected], "volumes": volumes}

    path = str(tmp_path) if place == "bind mount" else None
    job_id = package_site.run_container(make, file["_id"], path, user=user)
    assert package_site.container_log(job_id) == f"{_md5(content)}  -\n"


def _md5(content: bytes) -> str:
    import hashlib

    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_docker_run_gets_a_file_an_item_and_a_folder(package_site: PackageSite) -> None:
    user = package_site.create_user()
    folder = user.client.createFolder(user.folder["_id"], "inputs")
    first = package_site.upload(b"one\n", "a.txt", client=user.client, folder=folder["_id"])
    item = user.client.createItem(folder["_id"], "two files")
    for name in ("b.txt", "c.txt"):
        _upload_to_item(user.client, item["_id"], name, name.encode() + b"\n")

    def make(file_id: str, item_id: str, folder_id: str) -> dict[str, Any]:
        from girder_worker.docker.transforms.girder import (
            GirderFileIdToVolume,
            GirderFolderIdToVolume,
            GirderItemIdToVolume,
        )

        inputs = [
            GirderFileIdToVolume(file_id),
            GirderItemIdToVolume(item_id),
            GirderFolderIdToVolume(folder_id),
        ]
        script = 'cat "$0"; cat "$1"/*; cd "$2"; find . -type f | sort'
        return {"container_args": ["sh", "-c", script, *inputs]}

    job_id = package_site.run_container(make, first["_id"], item["_id"], folder["_id"], user=user)
    assert package_site.container_log(job_id).splitlines() == [
        *("one", "b.txt", "c.txt"),
        *("./a.txt", "./two files/b.txt", "./two files/c.txt"),
    ]


def _upload_to_item(client: Any, item_id: str, name: str, data: bytes) -> None:
    import io

    client.uploadFile(item_id, io.BytesIO(data), name, len(data), parentType="item")


def test_docker_run_uploads_to_an_item_and_to_a_folder(package_site: PackageSite) -> None:
    user = package_site.create_user()
    item = user.client.createItem(user.folder["_id"], "results")
    folder = user.client.createFolder(user.folder["_id"], "all results")

    def make(item_id: str, folder_id: str) -> dict[str, Any]:
        from girder_worker.docker.transforms import VolumePath
        from girder_worker.docker.transforms.girder import (
            GirderUploadVolumePathToFolder,
            GirderUploadVolumePathToItem,
        )

        file, directory = VolumePath("file"), VolumePath("directory")
        script = 'echo one > "$0"; mkdir "$1"; echo two > "$1/two"; echo three > "$1/three"'
        return {
            "container_args": ["sh", "-c", script, file, directory],
            "girder_result_hooks": [
                GirderUploadVolumePathToItem(VolumePath("file"), item_id),
                GirderUploadVolumePathToFolder(VolumePath("directory"), folder_id),
            ],
        }

    package_site.run_container(make, item["_id"], folder["_id"], user=user)
    (file,) = user.client.listFile(item["_id"])
    assert (file["name"], _content(user.client, file["_id"])) == ("file", b"one\n")
    uploaded = {
        each["name"]: _content(user.client, next(user.client.listFile(each["_id"]))["_id"])
        for each in user.client.listItem(folder["_id"])
    }
    assert uploaded == {"two": b"two\n", "three": b"three\n"}


def _content(client: Any, file_id: str) -> bytes:
    return b"".join(client.downloadFileAsIterator(file_id))


def test_docker_run_reports_progress_from_a_pipe(package_site: PackageSite) -> None:
    def make() -> dict[str, Any]:
        from girder_worker.docker.transforms.girder import ProgressPipe

        line = '{"message": "half of it", "total": 100, "current": 50}'
        return {"container_args": ["sh", "-c", f"echo '{line}' > \"$0\"", ProgressPipe()]}

    job_id = package_site.run_container(make)
    progress = {"message": "half of it", "total": 100, "current": 50}
    assert package_site.job(job_id)["progress"] == progress


def test_docker_run_streams_to_an_address_in_chunks(package_site: PackageSite) -> None:
    def make(url: str) -> dict[str, Any]:
        from girder_worker.docker import transforms

        output = transforms.ChunkedTransferEncodingStream(url, {"Key": "known"})
        connected = transforms.Connect(transforms.NamedOutputPipe("pipe"), output)
        return {"container_args": ["sh", "-c", 'seq 1000 > "$0"', connected]}

    with receiving_chunks() as server:
        package_site.run_container(make, f"{server.url}/receive")
    lines = b"".join(b"%d\n" % n for n in range(1, 1001))
    assert server.received == [("/receive", "known", lines)]


def test_docker_run_makes_temporary_volumes_where_it_is_told(
    package_site: PackageSite, tmp_path: Path
) -> None:
    def make(root: str) -> dict[str, Any]:
        from girder_worker.docker.transforms import TemporaryVolume, VolumePath

        volume = TemporaryVolume(host_dir=root)
        written = VolumePath("file", volume)
        script = 'echo written > "$0"; cat "$0"; mount | grep -c girder_worker'
        return {"container_args": ["sh", "-c", script, written], "volumes": [volume]}

    root = tmp_path / "root"
    job_id = package_site.run_container(make, str(root))
    assert package_site.container_log(job_id) == "written\n2\n"
    wait_until(lambda: not list(root.iterdir()))


def test_docker_run_attaches_an_artifact_to_its_job(package_site: PackageSite) -> None:
    def make() -> dict[str, Any]:
        from girder_worker.docker.transforms import VolumePath
        from girder_worker.docker.transforms.girder import GirderUploadVolumePathJobArtifact

        path = VolumePath("trace.txt")
        return {
            "container_args": ["sh", "-c", 'echo found > "$0"', path],
            "girder_result_hooks": [GirderUploadVolumePathJobArtifact(VolumePath("trace.txt"))],
        }

    user = package_site.create_user()
    job_id = package_site.run_container(make, user=user)
    (artifact,) = user.client.get(f"job/{job_id}/artifact")
    assert (artifact["name"], artifact["size"]) == ("trace.txt", 6)
    assert _content(user.client, artifact["_id"]) == b"found\n"


@pytest.mark.parametrize("kind", ["chain", "group"])
def test_docker_run_shares_a_volume_with_another(
    package_site: PackageSite, tmp_path: Path, kind: str
) -> None:
    """The calls of a user refer to one object, and each to the default volume more than once."""
    user = package_site.create_user()
    item = user.client.createItem(user.folder["_id"], "results")

    def start(path: str, item_id: str, image: str, kind: str) -> str:
        from celery import chain, group
        from girder_worker.docker.tasks import docker_run
        from girder_worker.docker.transforms import BindMountVolume, VolumePath
        from girder_worker.docker.transforms.girder import GirderUploadVolumePathToItem
        from their_tasks.tasks import add

        volume = BindMountVolume(path, "/mnt/shared")

        def call(name: str) -> Any:
            script = 'echo $1 > /mnt/shared/$1; cp /mnt/shared/$1 "$0"; test -d "${2%/*}"'
            written, also = VolumePath(name), VolumePath("also")
            return docker_run.si(
                image,
                pull_image=False,
                network_mode="none",
                container_args=["sh", "-c", script, written, name, also],
                volumes=[volume],
                girder_result_hooks=[GirderUploadVolumePathToItem(VolumePath(name), item_id)],
            )

        calls = [call("one"), call("two")]
        rest = [group(calls)] if kind == "group" else calls
        return str(chain(add.si(1, 2), *rest).apply_async().id)

    package_site.call(start, str(tmp_path), item["_id"], IMAGE, kind, user=user)

    def ended() -> list[str] | None:
        jobs = package_site.documents("job", {"userId": ObjectId(user.id)})
        done = len(jobs) == 3 or any(job["status"] == JobStatus.ERROR for job in jobs)
        ids = [str(job["_id"]) for job in jobs]
        return ids if done and all(job["status"] in FINAL for job in jobs) else None

    logs = {job_id: package_site.log(job_id) for job_id in wait_until(ended, 90)}
    assert len(logs) == 3, logs
    for job_id in logs:
        package_site.wait(job_id, status=JobStatus.SUCCESS)
    found = {
        each["name"]: _content(user.client, each["_id"])
        for each in user.client.listFile(item["_id"])
    }
    assert found == {"one": b"one\n", "two": b"two\n"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "two"]


def test_docker_run_ends_in_error_with_the_exit_code(package_site: PackageSite) -> None:
    job_id = package_site.run_container(_says("echo at work; exit 7"), status=JobStatus.ERROR)
    lines = package_site.container_log(job_id).splitlines()
    assert lines[0] == "at work"
    assert lines[-1].endswith("Non-zero exit code from docker container (7).")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done", id="obeys"),
        pytest.param("trap '' TERM; echo ready; while :; do sleep 0.1; done", id="ignores"),
    ],
)
def test_docker_run_stops_its_container_when_canceled(
    package_site: PackageSite, script: str
) -> None:
    job_id = package_site.docker_run(_says(script))
    wait_until(lambda: "ready" in package_site.container_log(job_id))
    package_site.admin.put(f"job/{job_id}/cancel")
    package_site.wait(job_id, status=JobStatus.CANCELED)
