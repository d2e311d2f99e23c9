"""Downloads from a Girder that fails, changes its files or sends other content."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path
from typing import Any

import dask
import girder_client
import pytest
import requests

from girder_dask.errors import TransformError
from girder_dask.files.cache import FileCache
from girder_dask.files.downloads import DiskFull, FileChanged, download
from girder_dask.standalone import ports
from girder_dask.transforms import GirderFileId, GirderFileIdAllowDirect, GirderItemId
from tests.support.file_girder import Cut, FileGirder, serving_files

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def gc(girder: FileGirder) -> girder_client.GirderClient:
    client = girder_client.GirderClient(apiUrl=girder.url)
    client.token = "TOKEN"
    return client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def ignore(*_: Any) -> None: ...


def sha512(content: bytes) -> str:
    return hashlib.sha512(content).hexdigest()


def test_download_writes_and_reports_all_bytes(girder: FileGirder, gc: Any, path: Path) -> None:
    told: list[tuple[int, int | None, str]] = []
    file = girder.put("a.bin", CONTENT * 3, sha512=sha512(CONTENT * 3))
    download(gc, file, path, lambda *what: told.append(what))
    assert path.read_bytes() == CONTENT * 3
    assert told[-1] == (len(CONTENT) * 3, len(CONTENT) * 3, "a.bin")
    assert [t[0] for t in told] == sorted(t[0] for t in told)
    assert len(told) >= 3
    assert set(girder.tokens) == {"TOKEN"}


def test_download_writes_an_empty_file(girder: FileGirder, gc: Any, path: Path) -> None:
    download(gc, girder.put("empty", b"", sha512=sha512(b"")), path, ignore)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("known", [True, False], ids=["checksum", "no checksum"])
def test_download_resumes_where_the_connection_broke(
    girder: FileGirder, gc: Any, path: Path, known: bool
) -> None:
    file = girder.put("a.bin", CONTENT, **({"sha512": sha512(CONTENT)} if known else {}))
    girder.cuts = [300_000, 0, 500_000]
    download(gc, file, path, ignore)
    assert path.read_bytes() == CONTENT
    ranges = [r for r in girder.ranges if r]
    assert len(ranges) == 3
    assert 0 < int(ranges[0].strip("bytes=-")) <= 300_000
    assert ranges[0] == ranges[1]


def test_download_restarts_where_ranges_are_not_served(
    girder: FileGirder, gc: Any, path: Path
) -> None:
    girder.cuts, girder.resumes = [300_000], False
    download(gc, girder.put("a.bin", CONTENT, sha512=sha512(CONTENT)), path, ignore)
    assert path.read_bytes() == CONTENT


def test_download_waits_for_a_girder_that_is_away(girder: FileGirder, gc: Any, path: Path) -> None:
    faults: list[Any] = [503, Cut(), 500, 429]

    def fault(_: str) -> int | None:
        found = faults.pop(0) if faults else None
        if isinstance(found, Exception):
            raise found
        return found

    girder.fault = fault
    with dask.config.set({"girder.worker.retry-time": "60 s"}):
        download(gc, girder.put("a.bin", b"abc", sha512=sha512(b"abc")), path, ignore)
    assert path.read_bytes() == b"abc"
    assert len(girder.asked) == 5


@pytest.mark.parametrize("status", [400, 401, 403, 404, 501])
def test_download_raises_refusals_at_once(
    girder: FileGirder, gc: Any, path: Path, status: int
) -> None:
    girder.fault = lambda _: status
    with pytest.raises(requests.HTTPError):
        download(gc, girder.put("a.bin", b"abc"), path, ignore)
    assert len(girder.asked) == 1
    assert not path.exists()


def test_download_gives_up_on_an_internal_error_that_stays(
    girder: FileGirder, gc: Any, path: Path
) -> None:
    girder.fault = lambda what: None if "user/me" in what else 500
    with dask.config.set({"girder.worker.retry-time": "1 h"}), pytest.raises(requests.HTTPError):
        download(gc, girder.put("a.bin", b"abc"), path, ignore)
    assert len([what for what in girder.asked if "user/me" not in what]) == 3


def test_download_waits_for_a_girder_without_database(
    girder: FileGirder, gc: Any, path: Path
) -> None:
    def fault(_: str) -> int | None:
        return 500 if len(girder.asked) <= 12 else None

    girder.fault = fault
    with dask.config.set({"girder.worker.retry-time": "60 s"}):
        download(gc, girder.put("a.bin", b"abc"), path, ignore)
    assert path.read_bytes() == b"abc"


def test_download_gives_up_on_a_girder_that_stays_away(
    gc: Any, girder: FileGirder, path: Path
) -> None:
    girder.fault = lambda _: 503
    with (
        dask.config.set({"girder.worker.retry-time": "1 s"}),
        pytest.raises(requests.HTTPError),
    ):
        download(gc, girder.put("a.bin", b"abc"), path, ignore)
    assert 2 <= len(girder.asked) <= 8
    assert not path.exists()


def test_download_refuses_another_checksum(girder: FileGirder, gc: Any, path: Path) -> None:
    file = girder.put("a.bin", b"abc", sha512=sha512(b"abd"))
    with pytest.raises(TransformError, match=r"a\.bin differs from the file that was uploaded"):
        download(gc, file, path, ignore)
    assert girder.count("GET file/id0/download") == 2
    assert not path.exists()


@pytest.mark.parametrize("size", [2, 4])
def test_download_refuses_another_size(girder: FileGirder, gc: Any, path: Path, size: int) -> None:
    file = girder.put("a.bin", b"abc")
    file["size"] = girder.documents["id0"]["size"] = size
    with pytest.raises(TransformError, match=rf"a\.bin has {size} bytes in Girder, but 3 arrived"):
        download(gc, file, path, ignore)
    assert not path.exists()


@pytest.mark.parametrize("known", [True, False], ids=["checksum", "no checksum"])
def test_download_raises_file_changed(girder: FileGirder, gc: Any, path: Path, known: bool) -> None:
    file = girder.put("a.bin", CONTENT, **({"sha512": sha512(CONTENT)} if known else {}))
    changed = CONTENT[::-1]
    girder.cuts = [300_000]

    def fault(_: str) -> None:
        if len(girder.asked) == 2:
            girder.replace("id0", changed, **({"sha512": sha512(changed)} if known else {}))

    girder.fault = fault
    with pytest.raises(FileChanged) as caught:
        download(gc, file, path, ignore)
    assert caught.value.file == girder.documents["id0"]
    assert not path.exists()


@pytest.mark.parametrize("cached", [True, False])
def test_file_fetcher_restarts_with_a_file_that_changed(
    girder: FileGirder, gc: Any, tmp_path: Path, cached: bool
) -> None:
    girder.put("a.bin", CONTENT)
    girder.cuts = [300_000]
    changed = CONTENT[::-1] + b"more"

    def fault(_: str) -> None:
        if len(girder.asked) == 3:
            girder.replace("id0", changed)

    girder.fault = fault
    transform = GirderFileId("id0", gc=gc)
    transform.work_dir = tmp_path
    transform.cache = FileCache(tmp_path / "cache", 10**8) if cached else None
    assert Path(transform.transform()).read_bytes() == changed
    if cached:
        assert transform.cache.size() == len(changed)


def test_file_fetcher_gives_up_on_a_file_that_keeps_changing(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    girder.put("a.bin", b"")

    def fault(what: str) -> None:
        if what.endswith("download"):
            girder.replace("id0", b"x" * len(girder.asked))

    girder.fault = fault
    transform = GirderFileId("id0", gc=gc)
    transform.work_dir = tmp_path
    with pytest.raises(TransformError, match=r"a\.bin changed 5 times while it was fetched"):
        transform.transform()


def test_download_raises_disk_full_and_leaves_nothing(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    girder.put("a.bin", CONTENT)
    transform = GirderFileId("id0", gc=gc)
    transform.work_dir = tmp_path
    transform.cache = FileCache(tmp_path / "cache", 10**8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(
            DiskFull,
            match=r"GirderFileId\('id0'\): The disk of the worker is full.*a.bin \(1,048,576 bytes",
        ):
            transform.transform()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    transform.cleanup()
    assert transform.cache.entries() == []
    assert list(tmp_path.rglob("a.bin")) == []


def test_download_sends_no_token_to_another_site(girder: FileGirder, gc: Any, path: Path) -> None:
    with serving_files() as other:
        file = girder.put("a.bin", CONTENT, sha512=sha512(CONTENT))
        other.put("a.bin", CONTENT)
        girder.elsewhere = other.url
        other.cuts = [300_000]
        download(gc, file, path, ignore)
        assert path.read_bytes() == CONTENT
        assert set(girder.tokens) == {"TOKEN"}
        assert other.tokens == [None, None]
        assert other.ranges[1] is not None
        other.fault = lambda _: 403
        with pytest.raises(requests.RequestException) as caught:
            download(gc, file, path, ignore)
        assert other.url not in str(caught.value)
        assert "the file is at 127.0.0.1, which answered 403" in str(caught.value)
        other.fault, other.elsewhere = (lambda _: None), other.url  # within the other site
        with pytest.raises(requests.RequestException, match="from one address to the next"):
            download(gc, file, path, ignore)
        assert set(other.tokens) == {None}


def test_download_names_a_storage_server_without_its_address(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    with serving_files() as other:
        girder.elsewhere = f"{other.url}/key?X-Amz-Signature=SECRET&x="
    file = girder.put("a.bin", CONTENT)
    transform = GirderFileId(file["_id"], gc=gc)
    transform.work_dir = tmp_path
    setting = dask.config.set({"girder.worker.retry-time": 0.1})
    with setting, pytest.raises(TransformError) as caught:
        transform.transform()
    assert str(caught.value) == (
        "GirderFileId('id0'): the file cannot be fetched. Girder says that the file is at "
        "127.0.0.1, which did not answer (ConnectionError). Ask the operator of that server."
    )


def test_download_follows_a_link_that_the_cache_never_keeps(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    with serving_files() as other:
        other.put("there", b"one")
        file = girder.put("a.bin", b"", linkUrl=other.url)
        del file["size"]
        girder.elsewhere = other.url
        for content in (b"one", b"another"):
            other.replace("id0", content)
            transform = GirderFileId("id0", gc=gc)
            transform.work_dir = tmp_path
            transform.cache = FileCache(tmp_path / "cache", 10**8)
            assert Path(transform.transform()).read_bytes() == content
        assert transform.cache.entries() == []


def test_download_follows_a_limited_number_of_redirects(
    girder: FileGirder, gc: Any, path: Path
) -> None:
    girder.elsewhere = girder.url
    with pytest.raises(requests.RequestException, match="from one address to the next"):
        download(gc, girder.put("a.bin", b"abc"), path, ignore)
    assert [token for token in girder.tokens if token] == ["TOKEN"], "only Girder's API gets it"
    assert len(girder.asked) == 7


# -- through the cache -----------------------------------------------------------------------


def test_girder_file_id_asks_with_the_token_of_each_job(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    girder.put("a.bin", CONTENT, sha512=sha512(CONTENT))
    cache = FileCache(tmp_path / "cache", 10**8)

    def get(token: str) -> Path:
        client = girder_client.GirderClient(apiUrl=girder.url)
        client.token = token
        transform = GirderFileId("id0", gc=client)
        transform.work_dir, transform.cache = tmp_path, cache
        return Path(transform.transform())

    paths = [get("first"), get("second")]
    assert girder.tokens == ["first", "first", "second"]
    assert [p.read_bytes() == CONTENT for p in paths] == [True, True]
    assert paths[0].parent != paths[1].parent
    girder.fault = lambda _: 403 if girder.tokens[-1] == "third" else None
    with pytest.raises(TransformError, match=r"may not do this \(Fault 403\)"):
        get("third")
    girder.replace("id0", b"new", sha512=sha512(b"new"))
    assert get("fourth").read_bytes() == b"new"


def test_girder_file_id_gives_each_task_its_own_name_of_a_cached_file(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    girder.put("a.bin", CONTENT)
    for change in ("unlink", "replace", "write"):
        transform = GirderFileId("id0", gc=gc)
        transform.work_dir = tmp_path
        transform.cache = FileCache(tmp_path / "cache", 10**8)
        path = Path(transform.transform())
        assert path.read_bytes() == CONTENT
        if change == "unlink":
            path.unlink()
        elif change == "replace":
            (tmp_path / "new").write_bytes(b"new")
            (tmp_path / "new").replace(path)
        else:
            path.chmod(0o600)
            path.write_bytes(b"written")
        transform.cleanup()
        assert not path.parent.exists()
    transform = GirderFileId("id0", gc=gc)
    transform.work_dir, transform.cache = tmp_path, FileCache(tmp_path / "cache", 10**8)
    assert Path(transform.transform()).read_bytes() == CONTENT
    assert girder.count("GET file/id0/download") == 2


def test_girder_file_id_works_without_a_broken_cache(
    girder: FileGirder, gc: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    girder.put("a.bin", CONTENT)
    transform = GirderFileId("id0", gc=gc)
    transform.work_dir, transform.cache = tmp_path, FileCache(tmp_path / "cache", 10**8)
    (tmp_path / "cache" / "lock").mkdir()
    assert Path(transform.transform()).read_bytes() == CONTENT
    assert "The cache of files cannot be used" in caplog.text


def test_girder_item_id_keeps_extensions_where_names_collide(
    girder: FileGirder, gc: Any, tmp_path: Path
) -> None:
    for name, content in (("a.nii.gz", b"1"), ("a.nii.gz", b"2"), ("../b", b"3"), ("empty", b"")):
        girder.put(name, content, parent="item1")
    told: list[Any] = []
    transform = GirderItemId("item1", gc=gc)
    transform.work_dir, transform.cache = tmp_path, FileCache(tmp_path / "cache", 10**8)
    transform.report = lambda *what: told.append(what)
    found = Path(transform.transform())
    assert {p.name: p.read_bytes() for p in found.iterdir()} == {
        "a.nii.gz": b"1",
        "id1-a.nii.gz": b"2",
        ".._b": b"3",
        "empty": b"",
    }
    assert told[-1][:2] == (3, 3)
    transform.cleanup()
    assert not found.exists()


# -- in place --------------------------------------------------------------------------------


@pytest.fixture
def place(girder: FileGirder, tmp_path: Path) -> Path:
    """A file that Girder has on a disk that the worker sees."""
    girder.put("a.nii.gz", b"abc")
    path = tmp_path / "assetstore" / "3f2a"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    girder.documents["path"] = {"path": str(path), "modified": path.stat().st_mtime}
    return path


def direct(gc: Any, work_dir: Path, **more: Any) -> Path:
    transform = GirderFileIdAllowDirect("id0", gc=gc, **more)
    transform.work_dir = work_dir
    path = Path(transform.transform())
    assert path.name == "a.nii.gz"
    assert path.read_bytes() == b"abc"
    return path


@pytest.mark.parametrize("how", ["environment", "configuration"])
def test_girder_file_id_allow_direct_uses_a_file_in_place(
    place: Path, gc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.delenv("GW_DIRECT_PATHS", raising=False)
    assert not direct(gc, tmp_path).is_symlink()
    if how == "environment":
        monkeypatch.setenv("GW_DIRECT_PATHS", "1")
    with dask.config.set({"girder.worker.direct-paths": how == "configuration"}):
        path = direct(gc, tmp_path, local_path="/etc/passwd")
    assert path.readlink() == place


@pytest.mark.parametrize("what", ["gone", "size", "time", "directory", "not told", "refused"])
def test_girder_file_id_allow_direct_fetches_what_may_be_another_file(
    place: Path,
    girder: FileGirder,
    gc: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    monkeypatch.setenv("GW_DIRECT_PATHS", "1")
    facts = girder.documents["path"]
    if what == "gone":
        place.unlink()
    elif what == "size":
        place.write_bytes(b"abcd")
        facts["modified"] = place.stat().st_mtime
    elif what == "time":
        facts["modified"] -= 100
    elif what == "directory":
        facts["path"] = str(tmp_path)
    elif what == "not told":
        facts["path"] = None
    else:
        girder.fault = lambda asked: 404 if asked.endswith("/path") else None
    # A path that a submitter names is never used, though it is there and has the size.
    (tmp_path / "theirs").write_bytes(b"abc")
    assert not direct(gc, tmp_path, local_path=str(tmp_path / "theirs")).is_symlink()


def test_girder_file_id_allow_direct_needs_read_access(
    place: Path, girder: FileGirder, gc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GW_DIRECT_PATHS", "1")
    girder.fault = lambda what: 403 if what == "GET file/id0" else None
    with pytest.raises(TransformError, match="may not do this"):
        GirderFileIdAllowDirect("id0", local_path=str(place), gc=gc).transform()


def test_girder_file_id_retries_a_closed_port(tmp_path: Path) -> None:
    port = ports.choose(None)
    client = girder_client.GirderClient(apiUrl=f"http://127.0.0.1:{port}/api/v1")
    with (
        dask.config.set({"girder.worker.retry-time": "0.5 s"}),
        pytest.raises(TransformError, match=r"GirderItemId\('5f'\).*Girder did not answer"),
    ):
        GirderItemId("5f", gc=client).transform()
