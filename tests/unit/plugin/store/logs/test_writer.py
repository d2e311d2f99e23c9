"""What of a log is in the job document, and what is in chunks beside it."""

from __future__ import annotations

import re
import zlib
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from girder_dask.plugin.store.logs import writer
from girder_dask.plugin.store.logs.writer import LogWriter, cut_line

ID = ObjectId()
LIMIT, MOST, SLACK, END = 1000, 4000, 500, 100


@pytest.fixture(autouse=True, scope="module")
def small():
    """Bounds that a test reaches soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MAX_DOCUMENT_LOG_BYTES", LIMIT)
        patch.setattr(writer, "_SLACK_BYTES", SLACK)
        patch.setattr(writer, "LOG_END_BYTES", END)
        patch.setattr(writer, "_MIN_CHUNK_BYTES", 150)
        patch.setattr(writer, "_MAX_CHUNK_BYTES", 400)
        patch.setattr(writer.config, "nbytes", lambda _: MOST)
        yield


class Database:
    """A job document, and the chunks beside it."""

    def __init__(self) -> None:
        self.job: dict[str, Any] = {"_id": ID, "dask": {}, "log": []}
        self.chunks: dict[Any, bytes] = {}

    def write(self, *texts: str, ends: bool = False, spill: bool = False) -> LogWriter:
        dask, stored = dict(self.job["dask"]), self.job.get("dask_log")
        book = LogWriter(ID, dask, stored and {k: v for k, v in stored.items() if k != "chunks"})
        for text in texts:
            book.write(text, ends=ends)
        if spill:
            book.spill()
        change: dict[str, Any] = {"$set": {}}
        book.add_to(change)
        assert book.changed == (change != {"$set": {}})
        for chunk in book.chunks:
            self.chunks[chunk["_id"]] = zlib.decompress(chunk["data"])
            assert len(self.chunks[chunk["_id"]]) == chunk["size"]
        self.job["dask"] = dask
        for key, value in change["$set"].items():
            self.job.setdefault("dask_log", {})[key.removeprefix("dask_log.")] = value
        for key, value in change.get("$push", {}).items():
            place = self.job.setdefault("dask_log", {}) if "." in key else self.job
            place.setdefault(key.removeprefix("dask_log."), []).extend(value["$each"])
        return book

    @property
    def shown(self) -> str:
        return "".join(self.job["log"])

    @property
    def whole(self) -> str:
        log, stored = self.job["log"], self.job.get("dask_log") or {}
        head = log[: log.index(cut_line(ID))] if stored and cut_line(ID) in log else log
        parts = [self.chunks[chunk_id] for chunk_id, _ in stored.get("chunks", ())]
        return "".join(head) + b"".join([*parts, stored.get("tail", b"")]).decode()


def test_a_short_log_is_in_the_document_alone() -> None:
    database = Database()
    database.write("one\n")
    database.write("two\n", ends=True)
    assert database.job["log"] == ["one\n", "two\n"]
    assert "dask_log" not in database.job


def test_a_long_log_is_cut_in_the_document_with_a_mark_that_names_the_route() -> None:
    database = Database()
    lines = [f"line {n}\n" for n in range(300)]
    for line in lines:
        database.write(line)
    assert database.whole == "".join(lines)
    assert f"GET dask/job/{ID}/log" in database.shown
    assert len(database.shown) < LIMIT + len(cut_line(ID))
    database.write("Traceback\n", ends=True)
    assert database.shown.endswith("line 299\nTraceback\n")
    assert database.whole == "".join([*lines, "Traceback\n"])


def test_tiny_pieces_make_few_chunks() -> None:
    database = Database()
    for _ in range(2000):
        database.write("x")
    assert len(database.whole) == 2000
    assert len(database.chunks) < 2000 / 150


def test_what_exceeds_the_bound_is_counted_but_for_the_end() -> None:
    database = Database()
    for _ in range(30):
        database.write("x" * 999 + "\n")
    database.write("y" * 5000 + "\nTraceback\n", ends=True)
    whole = database.whole
    assert whole.endswith("Traceback\n")
    assert len(whole) < MOST + SLACK + END + 500
    gap = re.compile(r"\n\[This log has reached .*\]\n\[([\d,]+) bytes .* left out here\.\]\n")
    before, left_out, after = gap.split(whole)
    assert len(before) + int(left_out.replace(",", "")) + len(after) == 30_000 + 5011
    assert len(after) == END


texts = st.lists(
    st.lists(st.text(alphabet="aä\n", max_size=60).map(lambda t: t * 7), max_size=4), max_size=15
)


@given(texts, st.sets(st.integers(0, 14)))
def test_no_text_is_lost_however_it_comes(updates: list[list[str]], spills: set[int]) -> None:
    database = Database()
    written: list[str] = []
    for n, update in enumerate(updates):
        database.write(*update, spill=n in spills)
        written += update
        wanted = "".join(written)
        if len(wanted.encode()) <= MOST:
            assert database.whole == wanted
        else:
            assert database.whole[:1000] == wanted[:1000]
        assert len(database.shown.encode()) < LIMIT + len(cut_line(ID)) + 1
        assert len(database.whole.encode()) < MOST + SLACK + END + 1000


def test_a_document_that_takes_no_more_is_left_alone() -> None:
    database = Database()
    database.write("one\n")
    database.write("two\n", spill=True)
    database.write("three\n", ends=True, spill=True)
    assert database.job["log"] == ["one\n"]
    assert database.whole == "one\ntwo\nthree\n"
