"""Transforms without a Girder: what is found, what travels, what is said."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import dask
import girder_client
import pytest
import requests
from girder_worker_utils.transforms.girder_io import GirderFileId as WorkerFileId
from hypothesis import given
from hypothesis import strategies as st

from girder_dask.errors import TransformError
from girder_dask.files.transform_base import failure_reason, safe_name
from girder_dask.standalone import ports
from girder_dask.transforms import (
    GirderFileId,
    GirderFileIdAllowDirect,
    GirderFolderId,
    GirderItemId,
    GirderItemMetadata,
    GirderUploadJobArtifact,
    GirderUploadToFolder,
    GirderUploadToItem,
    ResultTransform,
    TemporaryDirectory,
    Transform,
    detached,
    explain,
    is_transform,
)
from girder_dask.utils.pytree import tree_map

Pair = namedtuple("Pair", "left right")  # noqa: PYI024 - the untyped kind has to work too


class Scaler:
    """Like those of scikit-learn: it has transform(), and is data."""

    def fit(self) -> None: ...

    def transform(self, data: Any) -> Any:
        return data


class Loud:
    transform = "a string"
    cleanup = "another"


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (GirderFileId("5f"), True),
        (WorkerFileId("5f", gc=object()), True),
        (GirderItemMetadata("5f"), True),
        (TemporaryDirectory(), True),
        (GirderFileId, False),
        (Scaler(), False),
        (Loud(), False),
        ("5f", False),
        (None, False),
    ],
)
def test_a_transform_is_known_by_both_of_its_methods(value: Any, answer: bool) -> None:
    assert is_transform(value) is answer


# -- nested values -------------------------------------------------------------------------

trees = st.recursive(
    st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=20,
)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [x for v in value for x in leaves(v)] if isinstance(value, (list, tuple)) else [value]


@given(trees)
def test_where_nothing_changes_the_very_same_value_comes_back(tree: Any) -> None:
    assert tree_map(lambda v: v, tree) is tree


@given(trees)
def test_every_leaf_is_changed_once_and_the_shape_stays(tree: Any) -> None:
    before = repr(tree)
    changed = tree_map(str, tree)
    assert leaves(changed) == [str(v) for v in leaves(tree)]
    assert repr(tree) == before
    assert tree_map(int, changed) == tree


def test_only_what_holds_a_change_is_made_anew() -> None:
    same, other = [1, 2], [3]
    value = {"same": same, "other": other}
    changed = tree_map(lambda v: v + (v == 3), value)
    assert changed == {"same": [1, 2], "other": [4]}
    assert changed["same"] is same
    assert value["other"] == [3]


def test_a_named_tuple_stays_one() -> None:
    changed = tree_map(lambda v: v * 2, [Pair(1, 2)])
    assert type(changed[0]) is Pair
    assert changed[0].right == 4


def test_keys_keep_their_order_and_are_no_leaves() -> None:
    file = GirderFileId("5f")
    value = OrderedDict([("b", 1), (file, 2)])
    assert list(tree_map(lambda v: v + 1, value).items()) == [("b", 2), (file, 3)]


# -- travelling ----------------------------------------------------------------------------


def test_a_transform_travels_without_client_and_directory(tmp_path: Path) -> None:
    client = socket.socket()  # cannot be pickled
    with client:
        file = GirderFileId("5f", gc=client)
        file.work_dir = tmp_path
        file.cache = file.report = print
        assert detached(file) is not file
        assert detached(file).gc is None
        assert file.gc is client
        arrived = pickle.loads(pickle.dumps(file))
    assert arrived.file_id == "5f"
    assert [arrived.gc, arrived.work_dir, arrived.cache, arrived.report] == [None] * 4


def test_what_holds_no_client_is_not_copied() -> None:
    for value in (GirderFileId("5f"), "text", [1], Scaler()):
        assert detached(value) is value


def test_those_of_girder_worker_are_detached_too() -> None:
    client = girder_client.GirderClient(apiUrl="http://girder.invalid/api/v1")
    client.token = "SECRET"
    file = WorkerFileId("5f", gc=client)
    assert file.gc is client
    assert b"SECRET" not in pickle.dumps(detached(file))
    assert pickle.loads(pickle.dumps(detached(file))).file_id == "5f"
    assert file.gc is client


@pytest.mark.parametrize(
    ("transform", "shown", "attribute"),
    [
        (GirderFileId("5f"), "GirderFileId('5f')", "file_id"),
        (GirderItemId("5f"), "GirderItemId('5f')", "item_id"),
        (GirderFolderId("5f"), "GirderFolderId('5f')", "folder_id"),
        (
            GirderFileIdAllowDirect("5f", "a.b", "/x/a.b"),
            "GirderFileIdAllowDirect('5f', 'a.b', '/x/a.b')",
            "file_id",
        ),
        (GirderFileIdAllowDirect("5f"), "GirderFileIdAllowDirect('5f', '')", "file_id"),
        (GirderUploadJobArtifact("5f"), "GirderUploadJobArtifact('5f')", "job_id"),
        (GirderItemMetadata("5f"), "GirderItemMetadata('5f')", "item_id"),
        (GirderUploadToItem("5f"), "GirderUploadToItem('5f')", "item_id"),
        (GirderUploadToFolder("5f"), "GirderUploadToFolder('5f')", "folder_id"),
    ],
)
def test_what_is_shown_is_what_one_would_write(transform: Any, shown: str, attribute: str) -> None:
    assert (repr(transform), str(transform), transform._repr_model_()) == (shown,) * 3
    assert getattr(transform, attribute) == "5f"


def test_an_object_id_of_the_database_is_taken_as_text() -> None:
    from bson import ObjectId

    identifier = ObjectId()
    assert GirderFileId(identifier).file_id == str(identifier)


OURS = [
    TemporaryDirectory(),
    GirderFileId("5f"),
    GirderFileIdAllowDirect("5f", "a.txt", "/x"),
    GirderItemId("5f"),
    GirderFolderId("5f"),
    GirderItemMetadata("5f"),
    GirderUploadToItem("5f", True, {"reference": "r"}),
    GirderUploadToFolder("5f", True, {"mimeType": "m"}, False),
    GirderUploadJobArtifact("5f", "name"),
    GirderUploadJobArtifact(),
]


def test_each_of_ours_is_tried_here() -> None:
    from girder_dask import transforms

    classes = {c for c in map(vars(transforms).get, transforms.__all__) if isinstance(c, type)}
    assert {type(t) for t in OURS} == classes - {Transform, ResultTransform}


@pytest.mark.parametrize("transform", OURS, ids=lambda transform: type(transform).__name__)
def test_a_transform_can_be_built_anew_from_its_arguments(transform: Any) -> None:
    arguments = json.loads(json.dumps(transform.arguments()))
    again = type(transform)(**arguments)
    assert vars(again) == vars(transform)
    assert again.arguments() == arguments
    assert "gc" not in arguments
    assert vars(pickle.loads(pickle.dumps(transform))) == {
        k: v for k, v in vars(transform).items() if k not in ("gc", "upload_recovery")
    }


def test_what_a_transform_gave_away_is_its_own() -> None:
    upload = GirderUploadToItem("5f", upload_kwargs={"reference": "r"})
    upload.arguments()["upload_kwargs"]["reference"] = "another"
    assert upload.upload_kwargs == {"reference": "r"}


# -- messages ------------------------------------------------------------------------------


def answer(status: int, body: Any, reason: str = "Because") -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.reason = reason
    response._content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.HTTPError("raw text of requests", response=response)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            answer(400, {"message": "Invalid file id (5f)."}),
            "There is no such file in Girder (Invalid file id (5f).).",
        ),
        (
            answer(403, {"message": "Read access denied for file 5f."}),
            "The owner of the job may not do this (Read access denied for file 5f.).",
        ),
        (answer(401, b""), "The owner of the job may not do this (access denied)."),
        (answer(502, b"<html>"), "Girder answered 502: Because"),
        (answer(500, {"message": "Disk full"}), "Girder answered 500: Disk full"),
        (
            answer(400, {"message": "Invalid key a.b: keys must not contain dots."}),
            "Girder answered 400: Invalid key a.b: keys must not contain dots.",
        ),
        (
            answer(400, {"message": "Invalid ObjectId: 5f"}),
            "There is no such file in Girder (Invalid ObjectId: 5f).",
        ),
        (answer(400, {"message": "Too many"}), "Girder answered 400: Too many"),
        (answer(404, b""), "There is no such file in Girder (not found)."),
        (answer(500, {}), "Girder answered 500: Because"),
        (answer(500, b'"text"'), "Girder answered 500: Because"),
        (answer(500, b"[1]"), "Girder answered 500: Because"),
    ],
)
def test_an_answer_of_girder_becomes_a_sentence(error: requests.HTTPError, said: str) -> None:
    assert failure_reason("file", error) == said


def test_a_foreign_transform_that_girder_refuses_is_explained() -> None:
    foreign = WorkerFileId("5f", gc=object())
    error = explain(foreign, answer(403, {"message": "Read access denied."}))
    assert isinstance(error, TransformError)
    assert str(error) == (
        "GirderFileId('5f'): The owner of the job may not do this (Read access denied.)."
    )
    gone = explain(Scaler(), answer(400, {"message": "Invalid item id (5f)."}))
    assert str(gone) == (
        "Scaler: There is no such file, item or folder in Girder (Invalid item id (5f).)."
    )


@pytest.mark.parametrize("error", [ValueError("5f"), TransformError("said"), OSError(28, "full")])
def test_what_is_no_answer_of_girder_is_left_alone(error: Exception) -> None:
    assert explain(GirderFileId("5f"), error) is None


def test_a_worker_without_girder_says_so() -> None:
    told = r"\('5f'\): this worker does not know the address of Girder.*girder.api-url"
    for transform, data in ((GirderFileId("5f"), ()), (GirderItemMetadata("5f"), ({},))):
        with pytest.raises(TransformError, match=told):
            transform.transform(*data)


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_id_is_said(empty: str) -> None:
    with pytest.raises(TransformError, match="the id of the file is empty"):
        GirderFileId(empty, gc=girder_client.GirderClient(apiUrl="http://x/api/v1")).transform()


def closed_port() -> int:
    return ports.choose(None)


def test_a_girder_that_does_not_answer_is_no_riddle() -> None:
    port = closed_port()
    client = girder_client.GirderClient(apiUrl=f"http://127.0.0.1:{port}/api/v1")
    impatient = dask.config.set({"girder.worker.retry-time": "0.3 s"})
    with impatient, pytest.raises(TransformError) as caught:
        GirderFileId("5f3c", gc=client).transform()
    message = str(caught.value)
    assert message.startswith("GirderFileId('5f3c'): the file cannot be fetched. Girder did not")
    assert "Connection refused" in message
    assert "object at 0x" not in message


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a.png", "a.png"),
        ("a/b.png", "a_b.png"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("/etc/passwd", "_etc_passwd"),
        ("a\0b", "a_b"),
        ("..", "5f"),
        (".", "5f"),
        ("", "5f"),
        ("…ä b.nii.gz", "…ä b.nii.gz"),
        ("ä" * 127 + ".z", "ä" * 126 + ".z"),
        ("a" * 300 + ".nii.gz", "a" * 248 + ".nii.gz"),
        ("." * 300, "." * 255),
    ],
)
def test_the_name_of_a_file_stays_in_its_directory(tmp_path: Path, name: str, safe: str) -> None:
    assert safe_name(name, "5f") == safe
    assert (tmp_path / safe).parent.resolve() == tmp_path.resolve()


# -- results -------------------------------------------------------------------------------


class Recording:
    """The methods of a Girder client that uploads use."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def uploadFileToItem(self, item: str, path: str, **more: Any) -> None:
        self.calls.append(("item", item, Path(path).name, more))

    def uploadFileToFolder(self, folder: str, path: str, **more: Any) -> None:
        self.calls.append(("file", folder, Path(path).name, more))

    def createFolder(self, parent: str, name: str, reuseExisting: bool) -> dict[str, str]:
        self.calls.append(("folder", parent, name, reuseExisting))
        return {"_id": f"{parent}/{name}"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "b.txt").write_text("b")
    (tmp_path / "out" / "a.txt").write_text("a")
    (tmp_path / "out" / "sub" / "c.txt").write_text("c")
    (tmp_path / "out" / "loop").symlink_to(tmp_path / "out", target_is_directory=True)
    return tmp_path / "out"


def test_a_directory_goes_into_an_item_flat(tree: Path) -> None:
    gc = Recording()
    assert GirderUploadToItem("5f", upload_kwargs={"mimeType": "x"}, gc=gc).transform(tree) == "5f"
    assert gc.calls == [("item", "5f", name, {"mimeType": "x"}) for name in ("a.txt", "b.txt")]


def noted(transform: Any, data: Any) -> str:
    """Let a transform take a result, and return what it writes into the job's log."""
    lines: list[str] = []
    transform.note = lines.append
    transform.transform(data)
    return "\n".join(lines)


def test_what_does_not_go_into_an_item_is_named(tree: Path) -> None:
    assert noted(GirderUploadToItem("5f", gc=Recording()), tree) == (
        "GirderUploadToItem('5f') has left out 'loop', 'sub': only files directly in the directory "
        "are sent; GirderUploadToFolder sends a tree."
    )


def test_what_does_not_go_into_a_folder_is_named(tree: Path) -> None:
    os.mkfifo(tree / "sub" / "pipe")
    (tree / "gone").symlink_to(tree / "nowhere")
    assert noted(GirderUploadToFolder("5f", gc=Recording()), tree) == (
        "GirderUploadToFolder('5f') has left out 'gone', 'loop', 'pipe': only files and "
        "directories are sent, and no links to directories."
    )


def test_nothing_is_noted_of_what_is_sent_whole(tree: Path) -> None:
    (tree / "loop").unlink()
    assert noted(GirderUploadToFolder("5f", gc=Recording()), tree) == ""
    assert noted(GirderUploadToItem("5f", gc=Recording()), tree / "sub") == ""


def test_a_hook_that_finds_nothing_says_so(tmp_path: Path) -> None:
    for hook in (
        GirderUploadToFolder("5f", must_exist=False, gc=Recording()),
        GirderUploadJobArtifact("5f", gc=Recording()),
    ):
        assert "uploaded nothing: there is no file at " in noted(hook, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": {"n": [0, float("nan")]}}, r"\['a'\]\['n'\]\[1\] is nan"),
        ({"a": {1}}, r"\['a'\] is of type builtins\.set"),
    ],
)
def test_metadata_that_is_no_json_is_named(value: Any, said: str) -> None:
    with pytest.raises(TransformError, match=said) as caught:
        GirderItemMetadata("5f", gc=Recording()).transform(value)
    assert "did not answer" not in str(caught.value)


def test_a_directory_goes_into_a_folder_with_what_is_below(tree: Path) -> None:
    gc = Recording()
    assert GirderUploadToFolder("5f", gc=gc).transform(str(tree)) == "5f"
    assert gc.calls == [
        ("file", "5f", "a.txt", {}),
        ("file", "5f", "b.txt", {}),
        ("folder", "5f", "sub", True),
        ("file", "5f/sub", "c.txt", {}),
    ]


@pytest.mark.parametrize("delete", [True, False])
def test_local_data_is_deleted_only_where_that_was_asked_for(tree: Path, delete: bool) -> None:
    for source in (tree / "a.txt", tree):
        upload = GirderUploadToFolder("5f", delete_file=delete, gc=Recording())
        upload.transform(source)
        assert source.exists()
        upload.cleanup()
        assert source.exists() is not delete


def test_a_path_with_nothing_there_is_an_error_that_says_which(tmp_path: Path) -> None:
    with pytest.raises(TransformError, match=r"GirderUploadToItem\('5f'\).*nowhere.*no such file"):
        GirderUploadToItem("5f", gc=Recording()).transform(tmp_path / "nowhere")
    with pytest.raises(TransformError, match="returned None, but there is no such file"):
        GirderUploadToItem("5f", gc=Recording()).transform(None)
    relaxed = GirderUploadToFolder("5f", must_exist=False, gc=Recording())
    assert relaxed.transform(tmp_path / "nowhere") is None
    relaxed.cleanup()


def test_a_temporary_directory_is_empty_its_own_and_gone_after(tmp_path: Path) -> None:
    first, second = TemporaryDirectory(), TemporaryDirectory()
    first.work_dir = second.work_dir = tmp_path
    paths = [Path(first.transform()), Path(second.transform())]
    assert paths[0] != paths[1]
    assert all(p.parent == tmp_path and not list(p.iterdir()) for p in paths)
    (paths[0] / "x").write_text("x")
    first.cleanup()
    assert not paths[0].exists()
    assert paths[1].exists()


def test_transforms_do_not_need_the_client_library_to_be_imported() -> None:
    code = "import girder_dask.transforms, sys; print('girder_client' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"
