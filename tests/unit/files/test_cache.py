"""The cache of files, used by threads and by real processes, some of which are killed."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from girder_dask.files.cache import CacheUnusable, FileCache, open_cache
from girder_dask.files.downloads import DiskFull
from tests.support import cache_process
from tests.support.cache_process import URL


def document(name: str = "a.nii.gz", size: int = 1000, **more: Any) -> dict[str, Any]:
    return {"_id": f"id-{name}", "name": name, "size": size, "created": "2026-01-01", **more}


def writes(size: int = 1000) -> Callable[[Path], Any]:
    return lambda part: part.write_bytes(b"x" * size)


def refuses(_part: Path) -> None:
    raise AssertionError("it is fetched although it is there")


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", 3500)


def put(cache: FileCache, *names: str) -> None:
    for name in names:
        with contextlib.closing(cache.lease()) as lease:
            assert lease.get(URL, document(name), writes()) is not None


def names(cache: FileCache) -> list[str]:
    """Return the names of the files, the least recently used first."""
    return [f.name for entry in cache.entries() for f in entry.glob("content/*")]


# -- one process ---------------------------------------------------------------------------


def test_cache_fetches_a_file_once_and_read_only(cache: FileCache) -> None:
    put(cache, "a.nii.gz")
    with contextlib.closing(cache.lease()) as lease:
        path = lease.get(URL, document(), refuses)
        assert path is not None
        assert path.name == "a.nii.gz"
        assert path.read_bytes() == b"x" * 1000
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "change",
    [
        {"created": "2026-01-02"},
        {"size": 1001},
        {"sha512": "ab"},
        {"_id": "another"},
        {"name": "renamed.nii.gz"},
    ],
)
def test_cache_key_changes_with_the_file_in_girder(
    cache: FileCache, change: dict[str, Any]
) -> None:
    put(cache, "a.nii.gz")
    fetched = []
    changed = document() | change
    with contextlib.closing(cache.lease()) as lease:
        path = lease.get(
            URL, changed, lambda p: fetched.append(p.write_bytes(b"y" * changed["size"]))
        )
        assert path is not None
        assert path.read_bytes() == b"y" * changed["size"]
    assert fetched


def test_cache_key_differs_for_another_girder(cache: FileCache) -> None:
    put(cache, "a.nii.gz")
    fetched = []
    with contextlib.closing(cache.lease()) as lease:
        lease.get("https://other.invalid/api/v1", document(), lambda p: fetched.append(writes()(p)))
        assert lease.get(f"{URL}/", document(), refuses) is not None
    assert fetched


@pytest.mark.parametrize(
    "file",
    [
        document(size=3501),
        document(linkUrl="https://example.org/a.nii.gz"),
        document(imported=True),
        document() | {"size": None},
    ],
    ids=["too large", "behind a link", "imported, of unknown time", "of unknown size"],
)
def test_cache_leaves_what_it_cannot_keep_to_the_caller(
    cache: FileCache, file: dict[str, Any]
) -> None:
    with contextlib.closing(cache.lease()) as lease:
        assert lease.get(URL, file, refuses) is None
    assert cache.entries() == []


def test_cache_keeps_an_imported_file_while_its_time_is_the_same(cache: FileCache) -> None:
    fetched = []
    for modified in (1.5, 1.5, 2.5):
        with contextlib.closing(cache.lease()) as lease:
            file = document(imported=True, modified=modified)
            assert lease.get(URL, file, lambda p: fetched.append(writes()(p))) is not None
    assert len(fetched) == 2


@pytest.mark.parametrize("how", ["longer", "as long", "gone", "empty"])
def test_cache_fetches_a_file_that_changed_on_disk_again(
    cache: FileCache, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(cache, "a.nii.gz")
    (path,) = cache.directory.glob("*/content/a.nii.gz")
    if how == "gone":
        path.unlink()
    else:
        path.chmod(0o600)
        path.write_bytes({"longer": b"z" * 1001, "as long": b"z" * 1000, "empty": b""}[how])
    with contextlib.closing(cache.lease()) as lease:
        again = lease.get(URL, document(), writes())
        assert again is not None
        assert again.read_bytes() == b"x" * 1000
        assert stat.S_IMODE(again.stat().st_mode) == 0o444
    assert cache.size() == 1000
    assert "changed" in caplog.text


def test_cache_evicts_the_least_recently_used_file(cache: FileCache) -> None:
    put(cache, "a", "b", "c")
    put(cache, "a")
    assert names(cache) == ["b", "c", "a"]
    put(cache, "d")
    assert names(cache) == ["c", "a", "d"]
    assert cache.size() == 3000


def test_cache_lease_keeps_its_files(cache: FileCache) -> None:
    with contextlib.closing(cache.lease()) as lease:
        paths = [lease.get(URL, document(name), writes()) for name in "abc"]
        with contextlib.closing(cache.lease()) as another:
            assert another.get(URL, document("d"), refuses) is None
        assert all(path is not None and path.exists() for path in paths)
    put(cache, "d")
    assert names(cache) == ["b", "c", "d"]


def test_cache_leases_of_one_file_are_counted(cache: FileCache) -> None:
    cache.max_bytes = 1000
    first, second = cache.lease(), cache.lease()
    assert first.get(URL, document("a"), writes()) is not None
    assert second.get(URL, document("a"), refuses) is not None
    first.close()
    with contextlib.closing(cache.lease()) as third:
        assert third.get(URL, document("b"), refuses) is None
    second.close()
    put(cache, "b")
    assert names(cache) == ["b"]


def test_cache_keeps_nothing_of_a_failed_fetch(cache: FileCache) -> None:
    def breaks(part: Path) -> None:
        part.write_bytes(b"half")
        part.unlink()
        raise ConnectionResetError

    for _ in range(5):  # or what failed would fill the cache
        with contextlib.closing(cache.lease()) as lease, pytest.raises(ConnectionResetError):
            lease.get(URL, document(), breaks)
    assert cache.entries() == []
    put(cache, "a", "b", "c")
    assert cache.size() == 3000


def test_cache_discards_files_without_a_lease_when_the_disk_is_full(cache: FileCache) -> None:
    put(cache, "a", "b")
    tries = []

    def full_at_first(part: Path) -> None:
        tries.append(names(cache))
        if len(tries) == 1:
            raise DiskFull("no room")
        writes()(part)

    with contextlib.closing(cache.lease()) as lease:
        assert lease.get(URL, document("c"), full_at_first) is not None
    assert tries == [["a", "b"], []]


def test_cache_repairs_a_lost_or_wrong_count(cache: FileCache) -> None:
    put(cache, "a", "b", "c")
    for text in ("", "1000000", "nonsense"):
        (cache.directory / "bytes").write_text(text)
        put(cache, "d", "a", "b", "c")
        assert cache.size() == 3000


def test_cache_makes_a_removed_directory_again(cache: FileCache) -> None:
    import shutil

    put(cache, "a")
    shutil.rmtree(cache.directory)
    put(cache, "a")
    assert names(cache) == ["a"]


def test_cache_lease_takes_one_open_file_for_a_dataset(cache: FileCache) -> None:
    cache.max_bytes = 10**6
    with contextlib.closing(cache.lease()) as lease:
        for n in range(50):
            assert lease.get(URL, document(f"{n}"), writes()) is not None
        opened = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
        assert len([path for path in opened if path.startswith(str(cache.directory))]) == 1
    assert list((cache.directory / "users").iterdir()) == []
    assert list(cache.directory.glob("*/users/*")) == []


def test_cache_fetches_once_for_many_threads(cache: FileCache) -> None:
    fetched, got = [], []
    gate = threading.Barrier(16)

    def work() -> None:
        gate.wait()
        with contextlib.closing(cache.lease()) as lease:
            got.append(lease.get(URL, document(), lambda p: fetched.append(writes()(p))))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    assert len(got) == 16
    assert None not in got


def test_cache_lease_can_be_interrupted_while_it_waits(cache: FileCache) -> None:
    class Stopped(Exception): ...

    fetching, done = threading.Event(), threading.Event()

    def slow(part: Path) -> None:
        fetching.set()
        done.wait(30)
        writes()(part)

    def fetch() -> None:
        with contextlib.closing(cache.lease()) as lease:
            lease.get(URL, document(), slow)

    thread = threading.Thread(target=fetch)
    thread.start()
    fetching.wait(30)
    calls = []

    def waiting() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    try:
        with contextlib.closing(cache.lease()) as lease, pytest.raises(Stopped):
            lease.get(URL, document(), refuses, waiting=waiting)
    finally:
        done.set()
        thread.join()


# -- several processes ---------------------------------------------------------------------


class User:
    """A process that uses the cache."""

    def __init__(self, facts: dict[str, Any]) -> None:
        command = [sys.executable, cache_process.__file__, json.dumps(facts)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def finish(self) -> list[str]:
        return self.process.communicate(timeout=90)[0].split("\n")[:-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., User]]:
    users = []
    facts = {"directory": str(tmp_path / "cache"), "fetches": str(tmp_path / "fetches")}

    def start(file: dict[str, Any] | None = None, **more: Any) -> User:
        user = User({**facts, "max_bytes": 3500, "file": file or document(), **more})
        users.append(user)
        return user

    yield start
    for user in users:
        user.kill()
        user.process.communicate()


def fetches(tmp_path: Path) -> int:
    path = tmp_path / "fetches"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_cache_fetches_once_for_many_processes(start: Any, tmp_path: Path) -> None:
    users = [start(threads=4, pause=0.3) for _ in range(4)]
    said = [line for user in users for line in user.finish()]
    assert said.count("got 1000") == 16
    assert fetches(tmp_path) == 1


def test_cache_recovers_from_the_death_of_the_fetching_process(start: Any, tmp_path: Path) -> None:
    first = start(hang=True)
    assert first.line() == "half"
    others = [start(threads=2, tell=True) for _ in range(2)]
    assert [user.line() for user in others] == ["waiting"] * 2
    assert fetches(tmp_path) == 1
    first.kill()
    said = [line for user in others for line in user.finish()]
    assert said.count("got 1000") == 4
    assert fetches(tmp_path) == 2
    assert FileCache(tmp_path / "cache", 3500).size() == 1000


def test_cache_lease_ends_with_its_process(start: Any, cache: FileCache) -> None:
    cache.max_bytes = 1000
    user = start(max_bytes=1000)
    assert [user.line(), user.line()] == ["half", "got 1000"]
    with contextlib.closing(cache.lease()) as lease:
        assert lease.get(URL, document("b"), refuses) is None
        assert names(cache) == ["a.nii.gz"]
        user.kill()
        assert lease.get(URL, document("b"), writes()) is not None
    assert names(cache) == ["b"]
    assert list((cache.directory / "users").iterdir()) == []


def test_cache_frees_the_room_of_a_killed_fetch(start: Any, cache: FileCache) -> None:
    user = start(document("half", 3000), hang=True)
    assert user.line() == "half"
    assert cache.size() == 3000
    with contextlib.closing(cache.lease()) as lease:
        assert lease.get(URL, document("b"), refuses) is None
        user.kill()
        assert lease.get(URL, document("b"), writes()) is not None
    assert cache.size() == 1000


def test_cache_serves_processes_that_want_more_than_its_room(start: Any, cache: FileCache) -> None:
    users = [start(document(f"{n}"), pause=0.1) for n in range(8)]
    # All hold what they got until their input ends, so three get it and five do not.
    got = []
    for user in users:
        line = user.line()
        got.append(user.line() if line == "half" else line)
    assert sorted(got) == ["got 1000"] * 3 + ["got None"] * 5
    assert cache.size() == 3000


# -- configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [False, "", "false", " False "])
def test_open_cache_can_be_switched_off(value: Any) -> None:
    with dask.config.set({"girder.worker.cache-directory": value}):
        assert open_cache() is None
    with dask.config.set({"girder.worker.cache-size": 0}):
        assert open_cache() is None


def test_open_cache_makes_a_directory_of_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = open_cache()
    assert cache is not None
    assert cache.max_bytes == 10 * 2**30
    assert cache.directory == tmp_path / f"girder-dask-{os.getuid()}"
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700


def test_open_cache_reads_place_and_size_from_the_configuration(tmp_path: Path) -> None:
    place = {"girder.worker.cache-directory": str(tmp_path / "new" / "cache")}
    with dask.config.set({**place, "girder.worker.cache-size": "2 kB"}):
        cache = open_cache()
    assert cache is not None
    assert (cache.directory, cache.max_bytes) == (tmp_path / "new" / "cache", 2000)


def refusal(directory: Path) -> str:
    """Return why a directory is refused; nothing is put into it, or where a link leads."""
    with (
        dask.config.set({"girder.worker.cache-directory": str(directory)}),
        pytest.raises(CacheUnusable, match=r"girder\.worker\.cache-directory") as refused,
    ):
        open_cache()
    assert not directory.is_dir() or not list(directory.iterdir())
    return str(refused.value)


def give_away(path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a directory of another user")
    os.chown(path, 12345, 12345, follow_symlinks=False)


def test_open_cache_refuses_a_directory_that_others_may_use(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    (tmp_path / "file").touch()
    assert "run 'chmod 700'" in refusal(tmp_path / "shared")
    assert "is a link" in refusal(tmp_path / "link")
    assert "a file, not a directory" in refusal(tmp_path / "file")


def test_open_cache_refuses_a_directory_of_another_user(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    give_away(theirs)
    assert "belongs to another user (uid 12345)" in refusal(theirs)


def test_open_cache_refuses_a_directory_that_another_user_could_replace(tmp_path: Path) -> None:
    above = tmp_path / "girder_dask"
    (above / "cache").mkdir(mode=0o700, parents=True)
    above.chmod(0o777)
    assert f"others may write into {above}" in refusal(above / "cache")
    above.chmod(0o1777)  # as /tmp: nobody can replace what is another's
    with dask.config.set({"girder.worker.cache-directory": str(above / "cache")}):
        assert open_cache() is not None
    (above / "other").mkdir(mode=0o700)
    give_away(above)
    assert "who could replace" in refusal(above / "other")


def test_open_cache_refuses_a_link_of_another_user_above_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    give_away(link)
    assert f"{link} belongs to another user" in refusal(link / "cache")


def test_open_cache_makes_users_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    refusal(tmp_path / "link")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    (own / "users").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        FileCache(own, 10)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_cache_does_not_use_a_directory_that_changed_hands(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 10)
    give_away(tmp_path / "cache")
    with pytest.raises(PermissionError):
        cache.lease()
