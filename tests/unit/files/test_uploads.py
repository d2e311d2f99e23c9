"""Uploads into a Girder that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import girder_client
import pytest
import requests

from girder_dask.errors import TransformError
from girder_dask.files.upload_recovery import UploadRecovery
from girder_dask.files.uploads import send_artifact, upload
from girder_dask.protocol.names import ATTEMPT_HEADER, JOB_HEADER
from girder_dask.transforms import (
    GirderItemMetadata,
    GirderUploadJobArtifact,
    GirderUploadToFolder,
    GirderUploadToItem,
)
from tests.support.file_girder import Cut, FileGirder
from tests.support.local_girder import serving

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def gc(girder: FileGirder) -> girder_client.GirderClient:
    client = girder_client.GirderClient(apiUrl=girder.url)
    client.MAX_CHUNK_SIZE = 300_000
    return client


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(CONTENT)
    return tmp_path / "a.png"


ITEM, FOLDER = ("item", "item1"), ("folder", "folder1")


@pytest.mark.parametrize("parent", [ITEM, FOLDER])
def test_upload_sends_and_reports_pieces(
    girder: FileGirder, gc: Any, source: Path, parent: tuple[str, str]
) -> None:
    told: list[tuple[int, int | None, str]] = []
    upload(gc, parent, source, {"reference": "r"}, lambda *what: told.append(what))
    ((document, content),) = zip(girder.documents.values(), girder.contents.values(), strict=True)
    assert content == CONTENT
    assert (document["name"], document["parent"]) == ("a.png", parent[1])
    assert document["asked"]["mimeType"] == "image/png"
    assert document["asked"]["reference"] == "r"
    assert document["asked"]["parentType"] == parent[0]
    assert girder.count("POST file/chunk") == 4
    assert told[-1] == (len(CONTENT), len(CONTENT), "a.png")
    assert [t[0] for t in told] == sorted(t[0] for t in told)


@pytest.mark.parametrize("parent", [ITEM, FOLDER])
def test_upload_makes_an_empty_file(
    girder: FileGirder, gc: Any, tmp_path: Path, parent: tuple[str, str]
) -> None:
    (tmp_path / "empty").touch()
    upload(gc, parent, tmp_path / "empty")
    assert list(girder.contents.values()) == [b""]
    assert girder.count("POST file") == 1


def test_upload_does_not_make_an_empty_file_twice(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()

    def fault(_: str) -> None:
        raise Cut

    girder.fault = fault
    with pytest.raises(requests.ConnectionError):
        upload(gc, FOLDER, tmp_path / "empty")
    assert girder.count("POST file") == 1


def test_upload_takes_the_options_of_girder_client(
    girder: FileGirder, gc: Any, source: Path
) -> None:
    seen: list[Any] = []
    options = {"filename": "in/b.txt", "mimeType": "text/x", "progressCallback": seen.append}
    upload(gc, FOLDER, source, options)
    asked = girder.documents["id0"]["asked"]
    assert (asked["name"], asked["mimeType"]) == ("b.txt", "text/x")
    assert seen[0] == {"current": 300_000, "total": len(CONTENT)}
    assert seen[-1] == {"current": len(CONTENT), "total": len(CONTENT)}
    with pytest.raises(TypeError, match="upload_kwargs has speed"):
        upload(gc, FOLDER, source, {"speed": 5})


@pytest.mark.parametrize(
    ("fates", "uploads"),
    [
        (["", "lost", "lost"], 1),  # nothing of it came, so it is sent again
        (["", "half"], 2),  # a part came, so all begins anew
        (["", "unsaid"], 2),
        (["", "", "", "unsaid"], 1),  # it was the last, so the file is there
        (["half", "half"], 3),
    ],
)
def test_upload_loses_no_byte_when_a_connection_breaks(
    girder: FileGirder, gc: Any, source: Path, fates: list[str], uploads: int
) -> None:
    girder.chunks = fates
    upload(gc, FOLDER, source)
    assert list(girder.contents.values()) == [CONTENT]
    assert girder.count("POST file") == uploads
    assert girder.uploads == {}


def test_upload_waits_for_a_girder_that_is_away(girder: FileGirder, gc: Any, source: Path) -> None:
    faults: dict[str, list[int]] = {"POST file": [503, 502], "POST file/chunk": [503, 504]}
    girder.fault = lambda what: faults[what].pop(0) if faults.get(what) else None
    upload(gc, FOLDER, source)
    assert list(girder.contents.values()) == [CONTENT]


def test_upload_raises_refusals_at_once(girder: FileGirder, gc: Any, source: Path) -> None:
    for what in ("POST file", "POST file/chunk"):
        girder.asked.clear()
        girder.fault = lambda asked, what=what: 403 if asked == what else None  # type: ignore[misc]
        with pytest.raises(requests.HTTPError):
            upload(gc, FOLDER, source)
        assert girder.count(what) == 1
    transform = GirderUploadToItem("item1", gc=gc)
    with pytest.raises(TransformError, match=r"cannot be uploaded.*may not do this \(Fault 403\)"):
        transform.transform(source)


def test_upload_replaces_the_file_of_the_same_name_in_an_item(
    girder: FileGirder, gc: Any, source: Path
) -> None:
    upload(gc, ITEM, source)
    asked = len(girder.asked)
    upload(gc, ITEM, source)  # Girder has it already
    assert [w for w in girder.asked[asked:] if not w.startswith("GET")] == []
    other = CONTENT[::-1]  # of the same size
    for content in (other, b"short", b""):
        source.write_bytes(content)
        upload(gc, ITEM, source)
        assert list(girder.contents.values()) == [content]


def test_girder_upload_to_item_reports_all_files_of_a_directory(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for name, size in (("a", 1000), ("b", 0), ("c", 500)):
        (tmp_path / "out" / name).write_bytes(b"x" * size)
    told: list[Any] = []
    transform = GirderUploadToItem("item1", gc=gc)
    transform.report = lambda *what: told.append(what)
    assert transform.transform(tmp_path / "out") == "item1"
    assert told == [(1000, 1500, "a"), (1500, 1500, "c")]


def test_send_artifact_sends_a_file_again_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "plot.png").write_bytes(CONTENT)
    (tmp_path / "empty").touch()
    told: list[Any] = []
    with serving() as peer:
        answers = [(503, {"message": "away"}), (200, {"_id": "1"}), (200, {"_id": "2"})]
        route = "POST job/5f/artifact?name=my+plot&size=1048576&mimeType=image%2Fpng"
        peer.answers[route] = lambda _: answers.pop(0)
        peer.answers["POST job/5f/artifact?name=empty&size=0"] = lambda _: answers.pop(0)
        client = girder_client.GirderClient(apiUrl=peer.url)
        send_artifact(client, "5f", tmp_path / "plot.png", "my plot", lambda *w: told.append(w))
        send_artifact(client, "5f", tmp_path / "empty")
        assert peer.bodies == [CONTENT, CONTENT, b""]
    assert told[-1] == (len(CONTENT), len(CONTENT), "my plot")


def away(peer: Any, route: str, answer: Any) -> None:
    """Let Girder be away twice, then answer."""
    answers = [(503, {"message": "away"}), (502, {}), (200, answer)]
    peer.answers[route] = lambda _: answers.pop(0)


def test_upload_waits_for_the_list_of_files_of_an_item(
    girder: FileGirder, gc: Any, source: Path
) -> None:
    faults = [503, 502]
    girder.fault = lambda what: faults.pop(0) if faults and what.startswith("GET item") else None
    assert GirderUploadToItem("item1", gc=gc).transform(source) == "item1"
    assert faults == []
    assert list(girder.contents.values()) == [CONTENT]


def test_girder_item_metadata_waits_for_a_girder_that_is_away(girder: FileGirder) -> None:
    with serving() as peer:
        peer.answers["PUT item/5f/metadata"] = (200, {})
        away(peer, "PUT item/5f/metadata", {})
        client = girder_client.GirderClient(apiUrl=peer.url)
        GirderItemMetadata("5f", gc=client).transform({"a": 1})
        assert peer.bodies == [b'{"a": 1}'] * 3


def test_hooks_name_their_attempt(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with serving() as peer:
        peer.answers["POST job/5f/artifact?name=a&size=0"] = (200, {})
        peer.answers["PUT item/5f/metadata"] = (200, {})
        new = "POST file?parentType=folder&parentId=5f&name=a&size=0"
        peer.answers[new] = (200, {"_id": "1"})
        peer.answers["GET dask/job/5e/uploads?before=2"] = (200, [])
        client = girder_client.GirderClient(apiUrl=peer.url)
        hooks: list[tuple[Any, Any]] = [
            (GirderUploadJobArtifact("5f", gc=client), tmp_path / "a"),
            (GirderItemMetadata("5f", gc=client), {"a": 1}),
            (GirderUploadToFolder("5f", gc=client), tmp_path / "a"),
        ]
        for hook, value in hooks:
            hook.job = {"_id": "5e", "title": "Count"}
            hook.upload_recovery = UploadRecovery("5e", 2)
            hook.transform(value)
        named = [
            (headers.get(JOB_HEADER), headers.get(ATTEMPT_HEADER))
            for asked, headers in zip(peer.asked, peer.headers, strict=True)
            if not asked.startswith("GET")
        ]
        assert named == [("5e", "2")] * 3


def test_girder_upload_to_folder_waits_for_a_girder_that_is_away(
    girder: FileGirder, tmp_path: Path
) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    with serving() as peer:

        class Client(girder_client.GirderClient):
            def createFolder(self, *_args: Any, **_more: Any) -> Any:
                return self.post("folder")

        away(peer, "POST folder", {"_id": "f2"})
        transform = GirderUploadToFolder("f1", gc=Client(apiUrl=peer.url))
        assert transform.transform(tmp_path / "out") == "f1"
        assert peer.asked == ["POST folder"] * 3


def test_girder_item_metadata_refuses_what_is_not_plain() -> None:
    client = girder_client.GirderClient(apiUrl="http://127.0.0.1:1/api/v1")
    with pytest.raises(TransformError, match=r"cannot be metadata.*plain values"):
        GirderItemMetadata("5f", gc=client).transform({"a": object()})


@pytest.mark.parametrize("value", [None, 7])
def test_girder_upload_job_artifact_needs_a_path(value: Any) -> None:
    with pytest.raises(TransformError, match=f"returned {value}, which is not a path"):
        GirderUploadJobArtifact("5f", gc=object()).transform(value)


@pytest.mark.parametrize("kind", [GirderUploadJobArtifact, GirderUploadToFolder])
def test_uploads_refuse_a_name_that_is_not_utf8_before_they_send(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    (tmp_path / "out" / "b\udcff").touch()
    with serving() as peer:
        client = girder_client.GirderClient(apiUrl=peer.url)
        with pytest.raises(TransformError, match=r"the name 'b\\udcff' is not UTF-8"):
            kind("5f", gc=client).transform(tmp_path / "out")
        assert peer.asked == []


def test_girder_upload_job_artifact_attaches_the_other_files(tmp_path: Path) -> None:
    for name in ("a", "b\n", "c"):
        (tmp_path / name).touch()
    with serving() as peer:
        for name in "ac":
            peer.answers[f"POST job/5f/artifact?name={name}&size=0"] = (200, {})
        peer.answers["POST job/5f/artifact?name=b%0A&size=0"] = (400, {"message": "no name"})
        client = girder_client.GirderClient(apiUrl=peer.url)
        with pytest.raises(TransformError, match=r"cannot be attached: 'b\\n'\..*no name"):
            GirderUploadJobArtifact("5f", gc=client).transform(tmp_path)
        assert [asked.split("name=")[1] for asked in peer.asked] == [
            "a&size=0",
            "b%0A&size=0",
            "c&size=0",
        ]
