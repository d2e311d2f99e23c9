"""What girder_worker_utils promises of its transforms, asked of ours.

Its own unit tests are the source of the list. The client is a stand-in that notes what is
asked of it, as theirs is. One of theirs is about jsonpickle alone, and concerns no
transform: that nested dicts and lists come through it. How a transform travels is asked of
the pickle that we send.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from girder_dask.protocol.payload import open_call, pack_call
from girder_dask.transforms import (
    GirderFileId,
    GirderFileIdAllowDirect,
    GirderItemId,
    GirderUploadJobArtifact,
    GirderUploadToFolder,
    GirderUploadToItem,
    ResultTransform,
    Transform,
)


class Client:
    """Notes what is asked of it, as ``(method, arguments, keyword arguments)``."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, method: str) -> Any:
        if method == "urlBase":
            raise AttributeError(method)

        def note(*args: Any, **kwargs: Any) -> dict[str, Any]:
            self.asked.append((method, args, kwargs))
            return {"_id": "made", "name": "file.txt"}

        return note

    def calls(self, method: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for name, args, kwargs in self.asked if name == method]


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two files, and one in a directory below."""
    (tmp_path / "results" / "below").mkdir(parents=True)
    for name in ("one.txt", "two.txt", "below/three.txt"):
        (tmp_path / "results" / name).write_text(name)
    return tmp_path / "results"


@pytest.fixture
def file(directory: Path) -> Path:
    return directory / "one.txt"


# -- transforms that others write ------------------------------------------------------------


class Takes(Transform):
    """Its constructor does not call that of the base class, as many do not."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    def transform(self) -> Any:
        return self.args, self.kwargs


class Computes(Transform):
    def __init__(self, value: str | None = None) -> None:
        if value is None:
            self.value = "computed"

    def transform(self) -> Any:
        return None


class ChoosesItsState(Transform):
    def __init__(self, one: str, two: str = "default") -> None:
        self.one = one
        self.two = two

    def __getstate__(self) -> dict[str, Any]:
        return {"three": "chosen"}

    def transform(self) -> Any:
        return None


def travelled(transform: Any) -> Any:
    """Return a transform as it is on the worker."""
    return open_call(pack_call((transform,), {})).args[0]


def test_the_bases_are_not_for_use_by_themselves() -> None:
    for base in (Transform, ResultTransform):
        with pytest.raises(TypeError):
            base()


def test_a_result_transform_is_a_transform() -> None:
    assert issubclass(ResultTransform, Transform)
    assert isinstance(GirderUploadToItem("the id"), Transform)


def test_a_transform_gets_what_its_constructor_was_given() -> None:
    assert Takes().transform() == ((), {})
    assert Takes("a value").transform() == (("a value",), {})


def test_what_it_was_given_travels() -> None:
    arrived = travelled(Takes("a", "b", c="d"))
    assert type(arrived) is Takes
    assert (arrived.args, arrived.kwargs) == (("a", "b"), {"c": "d"})
    assert travelled(Takes(None, c=None)).transform() == ((None,), {"c": None})


def test_what_it_computed_travels() -> None:
    assert travelled(Computes()).value == "computed"


def test_a_state_that_it_chose_travels_and_nothing_else() -> None:
    arrived = travelled(ChoosesItsState("a", "b"))
    assert vars(arrived) == {"three": "chosen"}
    assert vars(pickle.loads(pickle.dumps(ChoosesItsState("a")))) == {"three": "chosen"}


# -- uploads ---------------------------------------------------------------------------------


def test_a_file_goes_into_an_item_with_the_options_given(client: Client, file: Path) -> None:
    upload = GirderUploadToItem("the id", gc=client, upload_kwargs={"reference": "a word"})
    assert upload.transform(str(file)) == "the id"
    assert client.asked == [("uploadFileToItem", ("the id", str(file)), {"reference": "a word"})]


def test_the_files_of_a_directory_go_into_an_item(client: Client, directory: Path) -> None:
    upload = GirderUploadToItem("the id", gc=client, upload_kwargs={"reference": "a word"})
    assert upload.transform(str(directory)) == "the id"
    assert sorted(client.calls("uploadFileToItem")) == [
        (("the id", str(directory / name)), {"reference": "a word"})
        for name in ("one.txt", "two.txt")
    ]


def test_a_file_goes_into_a_folder_with_the_options_given(client: Client, file: Path) -> None:
    upload = GirderUploadToFolder("the id", gc=client, upload_kwargs={"reference": "a word"})
    assert upload.transform(str(file)) == "the id"
    assert client.asked == [("uploadFileToFolder", ("the id", str(file)), {"reference": "a word"})]


def test_a_directory_goes_into_a_folder_with_what_is_below(client: Client, directory: Path) -> None:
    upload = GirderUploadToFolder("the id", gc=client, upload_kwargs={"reference": "a word"})
    assert upload.transform(str(directory)) == "the id"
    assert sorted(client.calls("uploadFileToFolder")) == [
        (("made", str(directory / "below" / "three.txt")), {"reference": "a word"}),
        (("the id", str(directory / "one.txt")), {"reference": "a word"}),
        (("the id", str(directory / "two.txt")), {"reference": "a word"}),
    ]
    assert client.calls("createFolder") == [(("the id", "below"), {"reuseExisting": True})]


@pytest.mark.parametrize("delete", [True, False])
@pytest.mark.parametrize("kind", [GirderUploadToItem, GirderUploadToFolder])
@pytest.mark.parametrize("what", ["one.txt", "."])
def test_clean_up_deletes_what_was_uploaded_if_asked_to(
    client: Client, directory: Path, kind: Any, what: str, delete: bool
) -> None:
    source = directory / what
    upload = kind("the id", delete_file=delete, gc=client)
    upload.transform(str(source))
    assert source.exists()
    upload.cleanup()
    assert source.exists() is not delete
    assert (directory / "two.txt").exists() is not (delete and what == ".")


def test_artifacts_are_posted_to_the_job_under_their_names(
    client: Client, directory: Path, file: Path
) -> None:
    artifact = GirderUploadJobArtifact(job_id="123", name="hello", gc=client)
    artifact.transform(str(file))
    ((path,), _) = client.calls("post")[0]
    assert urlsplit(path).path == "job/123/artifact"
    assert parse_qs(urlsplit(path).query) == {
        "name": ["hello"],
        "size": ["7"],
        "mimeType": ["text/plain"],
    }
    client.asked.clear()
    artifact.transform(str(directory))
    queries = [parse_qs(urlsplit(args[0]).query) for args, _ in client.calls("post")]
    assert sorted(query["name"] for query in queries) == [["one.txt"], ["two.txt"]]


def test_an_artifact_is_optional_and_of_the_running_job(client: Client, tmp_path: Path) -> None:
    artifact = GirderUploadJobArtifact(gc=client)
    artifact.job = {"_id": "456"}
    artifact.transform(str(tmp_path / "nothing"))
    assert client.asked == []
    (tmp_path / "plot.png").write_bytes(b"")
    artifact.transform(str(tmp_path / "plot.png"))
    ((path,), _) = client.calls("post")[0]
    assert path.startswith("job/456/artifact?name=plot.png&size=0")


# -- downloads -------------------------------------------------------------------------------


def test_a_file_is_fetched_and_gone_after_clean_up(client: Client) -> None:
    fetched = GirderFileId(_id="the id", gc=client)
    path = Path(fetched.transform())
    assert client.calls("downloadFile") == [(("the id", str(path)), {})]
    assert path.parent.is_dir()
    fetched.cleanup()
    assert not path.parent.exists()


def test_an_item_is_fetched_and_gone_after_clean_up(client: Client) -> None:
    fetched = GirderItemId(_id="the id", gc=client)
    path = fetched.transform()
    (((identifier, parent, name), _),) = client.calls("downloadItem")
    assert (identifier, Path(parent, name)) == ("the id", Path(path))
    assert Path(parent).is_dir()
    fetched.cleanup()
    assert not Path(parent).exists()


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_is_used_in_place_where_that_is_allowed_and_possible(
    client: Client, file: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool, there: bool
) -> None:
    monkeypatch.delenv("GW_DIRECT_PATHS", raising=False)
    if allowed:
        monkeypatch.setenv("GW_DIRECT_PATHS", "true")
    place = str(file) if there else f"{file}-elsewhere"
    direct = GirderFileIdAllowDirect("the id", "a name.txt", place, gc=client)
    path = direct.transform()
    if allowed and there:
        assert path == str(file)
        assert client.asked == []
    else:
        assert client.calls("downloadFile") == [(("the id", path), {})]
        assert path.endswith(".txt")
    direct.cleanup()
    assert file.exists()
    assert Path(path).exists() is (allowed and there)
