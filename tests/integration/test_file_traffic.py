"""Files between Girder and the workers: how often they travel, who gets them, what arrives."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import girder_client
import pytest

from girder_dask.files.cache import FileCache
from girder_dask.jobs import JobStatus
from girder_dask.transforms import GirderFileId, GirderUploadToFolder, GirderUploadToItem
from tests.support.breaking_proxy import BreakingProxy, breaking_proxy

MB = 10**6


@pytest.fixture
def downloads(girder_stack: Any) -> Iterator[Any]:
    """Count in Girder which files it serves from now on; called, it returns the ids."""

    def begin() -> None:
        import girder
        from girder import events

        girder.downloads = []  # type: ignore[attr-defined]
        events.bind(
            "model.file.download.request",
            "test_file_traffic",
            lambda event: girder.downloads.append(str(event.info["file"]["_id"])),  # type: ignore[attr-defined]
        )

    def served() -> list[str]:
        import girder

        return list(girder.downloads)  # type: ignore[attr-defined]

    def end() -> None:
        from girder import events

        events.unbind("model.file.download.request", "test_file_traffic")

    girder_stack.call(begin)
    yield lambda: Counter(girder_stack.call(served))
    girder_stack.call(end)


def start(name: str, *args: Any, **options: Any) -> str:
    """Start a task of my_worker_tasks.files; for girder_stack.call."""
    import my_worker_tasks.files

    return str(getattr(my_worker_tasks.files, name).delay(*args, **options).id)


def value(stack: Any, user: Any, name: str, *args: Any, **options: Any) -> Any:
    """Run a task, and return its result."""

    def result(job_id: str) -> Any:
        from girder_dask import JobResult

        return JobResult(job_id).get(timeout=30)

    job_id = stack.call(start, name, *args, user=user, **options)
    stack.wait(job_id, status=JobStatus.SUCCESS, timeout=60)
    return stack.call(result, job_id, user=user)


def failure(stack: Any, user: Any, name: str, *args: Any, **options: Any) -> str:
    """Run a task that fails, and return its log."""
    job_id = stack.call(start, name, *args, user=user, **options)
    stack.wait(job_id, status=JobStatus.ERROR, timeout=60)
    return str(stack.log(job_id))


def lost(stack: Any, user: Any, file_id: str) -> str:
    """Run a task with an input that fails, and with tries left, and return its log."""

    def start(file_id: str) -> str:
        from my_worker_tasks.files import file_facts

        from girder_dask.transforms import GirderFileId

        return str(file_facts.options(retries=2).delay(GirderFileId(file_id)).id)

    job_id = stack.call(start, file_id, user=user)
    stack.wait(job_id, status=JobStatus.ERROR, timeout=60)
    return str(stack.log(job_id))


# -- what does not become better -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (400_000, "data has 1,000,000 bytes in Girder, but every download ends early"),
        (None, "Girder knows the file, but has lost its content"),
    ],
    ids=["shorter", "gone"],
)
def test_what_girder_has_lost_on_disk_is_not_tried_again(girder_stack, girder_user, size, said):
    def damage(file_id: str, size: int | None) -> None:
        from pathlib import Path

        from girder.models.file import File

        path = Path(File().getLocalFilePath(File().load(file_id, force=True)))
        if size is None:
            path.unlink()
        else:
            path.chmod(0o600)
            os.truncate(path, size)

    content = hashlib.sha512(f"{girder_user.id}{size}".encode()).digest() * 15_625
    file = girder_stack.upload(content, client=girder_user.client)
    girder_stack.call(damage, file["_id"], size)
    log = lost(girder_stack, girder_user, file["_id"])  # long before Girder counts as lost
    assert said in log
    assert "The job is not retried" in log
    assert "Girder is unavailable" not in log


# -- once ----------------------------------------------------------------------------------------


def test_a_hundred_jobs_over_one_large_file_fetch_it_once(
    girder_stack, girder_user, downloads, tmp_path
):
    content = hashlib.sha512(girder_user.id.encode()).digest() * (100 * MB // 64)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    file = girder_user.client.uploadFileToFolder(girder_user.folder["_id"], str(path))

    def start_all(file_id: str) -> list[str]:
        from my_worker_tasks.files import file_facts

        from girder_dask.transforms import GirderFileId

        return [file_facts.delay(GirderFileId(file_id)).id for _ in range(100)]

    def results(job_ids: list[str]) -> list[Any]:
        from girder_dask import JobResult

        return [JobResult(job_id).get(timeout=30) for job_id in job_ids]

    job_ids = girder_stack.call(start_all, file["_id"], user=girder_user)
    for job_id in job_ids:
        girder_stack.wait(job_id, timeout=120, status=JobStatus.SUCCESS)
    assert downloads() == {file["_id"]: 1}
    facts = girder_stack.call(results, job_ids, user=girder_user)
    assert {(f["name"], f["size"], f["crc"], f["mode"]) for f in facts} == {
        ("scan.nii.gz", len(content), zlib.crc32(content), 0o444)
    }
    assert len({f["pid"] for f in facts}) == 2, "both worker processes have to take part"


def test_a_dataset_is_fetched_once(girder_stack, girder_user, downloads):
    client, folder = girder_user.client, girder_user.folder["_id"]
    item = client.createItem(folder, "dataset")
    for n in range(20):
        client.uploadFile(item["_id"], io.BytesIO(b"%d" % n), f"{n}.txt", len(f"{n}"))
    transforms = ("GirderItemId", item["_id"]), ("GirderFolderId", folder)

    def start_all() -> list[str]:
        from my_worker_tasks.files import read_tree

        from girder_dask import transforms as available

        made = [getattr(available, kind)(_id) for kind, _id in transforms]
        return [read_tree.delay(transform).id for transform in made * 4]

    def results(job_ids: list[str]) -> list[Any]:
        from girder_dask import JobResult

        return [JobResult(job_id).get(timeout=30) for job_id in job_ids]

    job_ids = girder_stack.call(start_all, user=girder_user)
    for job_id in job_ids:
        girder_stack.wait(job_id, timeout=60, status=JobStatus.SUCCESS)
    files = {f"{n}.txt": f"{n}" for n in range(20)}
    in_folder = {"dataset": None} | {f"dataset/{name}": text for name, text in files.items()}
    assert girder_stack.call(results, job_ids, user=girder_user) == [files, in_folder] * 4
    assert set(downloads().values()) == {1}
    assert len(downloads()) == 20


def test_a_file_that_is_replaced_is_never_stale(girder_stack, girder_user, downloads):
    client = girder_user.client
    file = girder_stack.upload(b"version 0", "a.txt", client=client)
    for n in range(5):
        content = b"version %d" % n
        if n:
            client.uploadFileContents(file["_id"], io.BytesIO(content), len(content))
        facts = value(girder_stack, girder_user, "file_facts", GirderFileId(file["_id"]))
        assert facts["crc"] == zlib.crc32(content)
        assert facts["name"] == "a.txt"
    value(girder_stack, girder_user, "file_facts", GirderFileId(file["_id"]))
    assert downloads() == {file["_id"]: 5}


def test_an_imported_file_that_changes_on_disk_is_never_stale(
    girder_stack, girder_user, downloads, tmp_path
):
    path = tmp_path / "instrument.txt"
    path.write_text("one")

    def import_file(place: str, item_id: str) -> str:
        from girder.models.assetstore import Assetstore
        from girder.models.item import Item
        from girder.models.user import User
        from girder.utility import assetstore_utilities

        item = Item().load(item_id, force=True)
        adapter = assetstore_utilities.getAssetstoreAdapter(Assetstore().getCurrent())
        file = adapter.importFile(item, place, User().load(item["creatorId"], force=True))
        return str(file["_id"])

    item = girder_user.client.createItem(girder_user.folder["_id"], "instrument")
    file = girder_stack.call(import_file, str(path), item["_id"])
    for text in ("one", "one", "two"):
        if path.read_text() != text:
            path.write_text(text)
        assert value(girder_stack, girder_user, "read_tree", _item(item)) == {
            "instrument.txt": text
        }
    assert downloads() == {file: 2}


def _item(item: dict[str, Any]) -> Any:
    from girder_dask.transforms import GirderItemId

    return GirderItemId(item["_id"])


# -- who gets them -------------------------------------------------------------------------------


def test_a_cached_file_is_only_for_those_who_may_read_it(girder_stack, girder_user, downloads):
    file = girder_stack.upload(b"private", "a.txt", client=girder_user.client)
    transform = GirderFileId(file["_id"])
    value(girder_stack, girder_user, "file_facts", transform)
    log = failure(girder_stack, girder_stack.create_user(), "file_facts", transform)
    assert f"GirderFileId('{file['_id']}'): the file cannot be fetched." in log
    assert "The owner of the job may not do this (Read access denied" in log
    assert downloads() == {file["_id"]: 1}
    girder_user.client.delete(f"file/{file['_id']}")
    log = failure(girder_stack, girder_user, "file_facts", transform)
    assert "There is no such file in Girder" in log


@pytest.mark.parametrize("kind", ["GirderItemId", "GirderFolderId"])
def test_items_and_folders_are_only_for_those_who_may_read_them(girder_stack, girder_user, kind):
    from girder_dask import transforms

    file = girder_stack.upload(b"private", "a.txt", client=girder_user.client)
    thing = {"GirderItemId": file["itemId"], "GirderFolderId": girder_user.folder["_id"]}[kind]
    transform = getattr(transforms, kind)(thing)
    assert "a.txt" in value(girder_stack, girder_user, "read_tree", transform)
    log = failure(girder_stack, girder_stack.create_user(), "read_tree", transform)
    assert f"{kind}('{thing}')" in log
    assert "The owner of the job may not do this" in log


def test_what_is_in_a_place_of_another_is_not_written(girder_stack, girder_user):
    other = girder_stack.create_user()
    hook = GirderUploadToFolder(other.folder["_id"])
    log = failure(
        girder_stack, girder_user, "make_tree", {"a.txt": "a"}, girder_result_hooks=[hook]
    )
    assert "the result cannot be uploaded. The owner of the job may not do this" in log
    assert list(other.client.listItem(other.folder["_id"])) == []


# -- what arrives --------------------------------------------------------------------------------


TREE = {
    "top.txt": "top",
    "empty.txt": "",
    "sub": None,
    "sub/scan.nii.gz": "scan",
    "sub/deeper": None,
    "sub/deeper/ä b.txt": "deep",
    "bare": None,
}


def test_a_directory_keeps_its_structure_there_and_back(girder_stack, girder_user):
    from girder_dask.transforms import GirderFolderId

    folder = girder_user.folder["_id"]
    options = {"girder_result_hooks": [GirderUploadToFolder(folder)]}
    value(girder_stack, girder_user, "make_tree", TREE, **options)
    assert value(girder_stack, girder_user, "read_tree", GirderFolderId(folder)) == TREE


def test_states_are_shown(girder_stack, girder_user):
    file = girder_stack.upload(b"x" * 1000, "a.txt", client=girder_user.client)
    hook = GirderUploadToFolder(girder_user.folder["_id"])
    job_id = girder_stack.call(
        start, "make_tree", {"b.txt": "b"}, girder_result_hooks=[hook], user=girder_user
    )
    girder_stack.wait(job_id, status=JobStatus.SUCCESS)
    fetched = girder_stack.call(start, "file_size", GirderFileId(file["_id"]), user=girder_user)
    girder_stack.wait(fetched, status=JobStatus.SUCCESS)
    names = [
        [JobStatus(stamp["status"]).name for stamp in girder_stack.job(each)["timestamps"]]
        for each in (job_id, fetched)
    ]
    assert names == [
        ["QUEUED", "RUNNING", "PUSHING_OUTPUT", "SUCCESS"],
        ["QUEUED", "FETCHING_INPUT", "RUNNING", "SUCCESS"],
    ]


def test_a_file_that_rotted_in_girder_is_not_taken_for_good(girder_stack, girder_user):
    file = girder_stack.upload(b"as it was", "a.txt", client=girder_user.client)

    def rot(file_id: str) -> None:
        from pathlib import Path

        from girder.models.file import File

        path = Path(File().getLocalFilePath(File().load(file_id, force=True)))
        path.chmod(0o600)
        path.write_bytes(b"as it is!")

    girder_stack.call(rot, file["_id"])
    log = failure(girder_stack, girder_user, "file_size", GirderFileId(file["_id"]))
    assert "a.txt differs from the file that was uploaded: its checksum" in log


# -- over connections that break -----------------------------------------------------------------


@pytest.fixture
def proxy(girder_stack: Any) -> Iterator[BreakingProxy]:
    with breaking_proxy(girder_stack.api) as proxy:
        yield proxy


def shows(stack: Any, job_id: str, message: str) -> bool:
    """Say whether the progress of a job has such a message, within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if re.fullmatch(message, (stack.job(job_id).get("progress") or {}).get("message") or ""):
            return True
        time.sleep(0.05)
    return False


def test_bytes_are_shown(girder_stack, girder_user, proxy):
    file = girder_stack.upload(b"x" * 4 * MB, "a.bin", client=girder_user.client)
    proxy.hold(1 * MB)
    job_id = girder_stack.call(
        start, "file_size", GirderFileId(file["_id"]), user=girder_user, girder_api_url=proxy.url
    )
    assert shows(
        girder_stack, job_id, r"Fetching a\.bin, ([01]\.\d+ MiB|[\d.]+ (B|kiB)) of 3\.81 MiB"
    )
    shown = girder_stack.job(job_id)["progress"]
    assert 0 < shown["current"] < shown["total"] == 4 * MB
    proxy.go_on()
    girder_stack.wait(job_id, status=JobStatus.SUCCESS)

    hook = GirderUploadToFolder(girder_user.folder["_id"])
    proxy.hold(3 * MB)
    job_id = girder_stack.call(
        start,
        "make_tree",
        {"b.bin": "y" * 12 * MB},
        user=girder_user,
        girder_result_hooks=[hook],
        girder_api_url=proxy.url,
    )
    assert shows(girder_stack, job_id, r"Uploading b\.bin, [\d.]+ (B|kiB|MiB) of 11\.44 MiB")
    shown = girder_stack.job(job_id)["progress"]
    assert 0 < shown["current"] < shown["total"] == 12 * MB
    proxy.go_on()
    girder_stack.wait(job_id, status=JobStatus.SUCCESS)


def test_a_job_resumes_a_download_that_broke(girder_stack, girder_user, proxy, downloads):
    content = hashlib.sha512(b"resume").digest() * (20 * MB // 64)
    file = girder_stack.upload(content, "a.bin", client=girder_user.client)
    proxy.cuts = [5 * MB, 3 * MB]
    facts = value(
        girder_stack,
        girder_user,
        "file_facts",
        GirderFileId(file["_id"]),
        girder_api_url=proxy.url,
    )
    assert facts["crc"] == zlib.crc32(content)
    assert proxy.done == 2
    ranges = [
        int(line.partition("bytes=")[2].rstrip("-"))
        for request in proxy.requests
        for line in request.splitlines()
        if line.startswith("Range:")
    ]
    assert len(ranges) == 2
    assert 4 * MB < ranges[0] < ranges[1] < 9 * MB
    assert downloads() == {file["_id"]: 3}


def test_an_upload_that_broke_arrives_whole(girder_stack, girder_user, proxy, tmp_path):
    content = hashlib.sha512(b"upload").digest() * (30 * MB // 64)
    (tmp_path / "a.bin").write_bytes(content)
    client = girder_client.GirderClient(apiUrl=proxy.url)
    client.token = girder_user.client.token
    client.MAX_CHUNK_SIZE = 10 * MB
    proxy.cuts = [7 * MB, 7 * MB]
    item = client.createItem(girder_user.folder["_id"], "made")
    assert GirderUploadToItem(item["_id"], gc=client).transform(tmp_path / "a.bin") == item["_id"]
    assert proxy.done == 2
    (file,) = client.listFile(item["_id"])
    assert (file["name"], file["size"]) == ("a.bin", len(content))
    assert file["sha512"] == hashlib.sha512(content).hexdigest()
    transform = GirderFileId(file["_id"], gc=girder_user.client)
    transform.work_dir, transform.cache = tmp_path, FileCache(tmp_path / "cache", 10**9)
    assert Path(transform.transform()).read_bytes() == content


def test_a_girder_that_is_silent_for_a_while_is_waited_for(girder_stack, girder_user, tmp_path):
    file = girder_stack.upload(b"abc", "a.txt", client=girder_user.client)
    transform = GirderFileId(file["_id"], gc=girder_user.client)
    transform.work_dir = tmp_path
    pid = girder_stack.pids["girder"]
    os.kill(pid, signal.SIGSTOP)
    goes_on = threading.Timer(1.0, os.kill, (pid, signal.SIGCONT))
    begun = time.monotonic()
    goes_on.start()
    try:
        assert Path(transform.transform()).read_bytes() == b"abc"
        assert time.monotonic() - begun >= 0.9
    finally:
        goes_on.join()


# -- in place ------------------------------------------------------------------------------------


def test_files_are_used_in_place_where_both_operators_want_it(
    girder_stack, girder_user, girder_admin, downloads
):
    file = girder_stack.upload(b"in place", "a.txt", client=girder_user.client)

    def place(file_id: str) -> str:
        from girder.models.file import File

        return str(File().getLocalFilePath(File().load(file_id, force=True)))

    where = girder_stack.call(place, file["_id"])

    def read(allowed: bool) -> Any:
        return value(girder_stack, girder_user, "read_in_place", file["_id"], allowed, "/etc/hosts")

    assert read(True) == {"text": "in place", "link": ""}, "Girder's setting is off"
    girder_admin.put("system/setting", parameters={"key": "dask.direct_path", "value": "true"})
    try:
        assert read(False) == {"text": "in place", "link": ""}, "the worker's is off"
        assert sum(downloads().values()) == 2
        assert read(True) == {"text": "in place", "link": where}
        assert sum(downloads().values()) == 2
        other = girder_stack.create_user()
        log = failure(girder_stack, other, "read_in_place", file["_id"], True, where)
        assert "may not do this" in log
    finally:
        girder_admin.delete("system/setting", parameters={"key": "dask.direct_path"})
