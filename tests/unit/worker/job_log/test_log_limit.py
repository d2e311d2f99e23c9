"""The beginning of a log that is too long is kept, and its end, and what is between is counted."""

from __future__ import annotations

import re
import threading

from hypothesis import given
from hypothesis import strategies as st

from girder_dask.protocol.log_limit import LOG_END_BYTES
from girder_dask.worker.job_log.log import JobLog
from girder_dask.worker.job_log.log_limit import LogLimit
from tests.support.deadline import SECONDS

GAP = re.compile(r"\n\[This log has reached the [\d,]+ bytes.*?\]\n\[([\d,]+) bytes .*\]\n")


def nbytes(text: str) -> int:
    return len(text.encode())


def test_what_fits_passes_and_has_no_end() -> None:
    limit = LogLimit(10)
    assert [limit.admit("12345"), limit.admit("67890")] == ["12345", "67890"]
    assert not limit.is_reached
    assert limit.end() == ""


def test_what_is_little_more_is_whole_and_has_no_mark() -> None:
    limit = LogLimit(10)
    text = "".join(limit.admit(f"line {n}\n") for n in range(1000))
    assert text + limit.end() == "".join(f"line {n}\n" for n in range(1000))


def test_a_character_is_not_divided() -> None:
    limit = LogLimit(5)
    assert limit.admit("äää") == "ää"
    assert limit.end() == "ä"


def test_what_utf_8_cannot_hold_is_counted() -> None:
    limit = LogLimit(5)
    assert limit.admit("a\ud800") + limit.end() == "a\\ud800"


@given(st.lists(st.text(alphabet="xä\n", max_size=20), max_size=300), st.integers(0, 200))
def test_the_gap_is_as_large_as_is_said(texts: list[str], most: int) -> None:
    texts = [text * 997 for text in texts]
    limit = LogLimit(most)
    kept = "".join([limit.admit(text) for text in texts]) + limit.end()
    whole = "".join(texts)
    found = GAP.search(kept)
    if found is None:
        assert kept == whole
        return
    before, after = kept[: found.start()], kept[found.end() :]
    assert whole.startswith(before)
    assert whole.endswith(after)
    assert most - 2 < nbytes(before) <= most
    assert len(after) >= min(LOG_END_BYTES, len(texts[-1]))
    missing = int(found[1].replace(",", ""))
    assert nbytes(before) + missing + nbytes(after) == nbytes(whole)


# -- the log of a job -------------------------------------------------------------------------


def test_nobody_waits_to_write_what_is_not_kept() -> None:
    log = JobLog(capacity=100, max_bytes=100)

    def write() -> None:
        for n in range(20_000):
            log.write(f"line {n}\n")
        log.write("Traceback\n")

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive()
    log.close()
    text = log.take()
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 19999\nTraceback\n")
    assert len(GAP.findall(text)) == 1
    assert len(text) < LOG_END_BYTES + 500


def test_the_end_is_there_though_others_hold_the_line() -> None:
    log = JobLog(max_bytes=10)
    log.write("0123456789 begun")
    log.write(" and ended\n")
    log.close()
    assert log.take() == "0123456789 begun and ended\n"


def test_a_long_line_is_taken_in_parts() -> None:
    log = JobLog(capacity=10)
    line = "ä" * 3_000_000 + "\n"
    log.write(line)
    parts = []
    while part := log.take(1 << 20):
        parts.append(part)
    assert "".join(parts) == line
    assert max(map(len, parts)) == 1 << 20
    log.close()
