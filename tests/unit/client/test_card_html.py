"""How a job looks in a notebook."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from typing import Any

import pytest

from girder_dask.client.card_html import render, tail
from girder_dask.jobs import JobStatus

NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
ID = "5f3c" * 6


def job(status: int, *stamps: tuple[int, float], **fields: Any) -> dict[str, Any]:
    """A document whose states began so many seconds before now."""
    times = [
        {"status": int(state), "time": (NOW - timedelta(seconds=ago)).isoformat()}
        for state, ago in stamps
    ]
    return {"_id": ID, "title": "Count", "status": int(status), "timestamps": times, **fields}


class Page(HTMLParser):
    """The text and the tags of a card, without its style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, _tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)


def shown(document: dict[str, Any], **options: Any) -> Page:
    return Page(render(document, now=NOW, **options))


def test_a_waiting_job_says_how_long_it_waits() -> None:
    page = shown(job(JobStatus.QUEUED, (JobStatus.QUEUED, 4)))
    assert page.words == ["Count", "queued", "waits for 4.00 s", f"job {ID}"]


def test_a_waiting_job_says_why_it_waits() -> None:
    why = {"dask": {"waits": "no worker has <gpu>=1"}, "progress": {"message": "of the try before"}}
    page = shown(job(JobStatus.QUEUED, **why))
    assert page.words == ["Count", "queued", "no worker has <gpu>=1", f"job {ID}"]
    assert "no worker has <gpu>=1" not in shown(job(JobStatus.RUNNING, **why)).words


def test_a_job_at_work_counts_from_its_last_time_in_the_queue() -> None:
    stamps = [(JobStatus.QUEUED, 500), (JobStatus.RUNNING, 400)]
    stamps += [(JobStatus.QUEUED, 80), (JobStatus.FETCHING_INPUT, 75), (JobStatus.RUNNING, 70)]
    assert "runs for 75.00 s" in shown(job(JobStatus.RUNNING, *stamps)).words


def test_a_job_that_has_ended_says_what_it_took() -> None:
    stamps = ((JobStatus.QUEUED, 9000), (JobStatus.RUNNING, 8000), (JobStatus.SUCCESS, 400))
    assert "took 2hr 6m" in shown(job(JobStatus.SUCCESS, *stamps)).words


@pytest.mark.parametrize("stamps", [None, [], [{"status": 2}], [{"status": 2, "time": "soon"}]])
def test_times_that_make_no_sense_are_left_out(stamps: Any) -> None:
    page = shown(job(JobStatus.RUNNING) | {"timestamps": stamps or []})
    assert page.words == ["Count", "running", f"job {ID}"]


def test_a_clock_that_is_late_gives_no_negative_time() -> None:
    assert "runs for 0.00 us" in shown(job(JobStatus.RUNNING, (2, -5))).words


def test_progress_is_a_bar_and_a_text() -> None:
    page = shown(job(2, progress={"total": 40, "current": 13, "message": "Reading"}))
    assert "Reading 13/40" in page.words
    bar = next(attrs for _, attrs in page.tags if attrs.get("role") == "progressbar")
    assert (bar["aria-valuenow"], bar["aria-valuemax"]) == ("32", "100")
    assert any(attrs.get("style") == "width:32.5%" for _, attrs in page.tags)


def test_progress_of_transfers_is_in_bytes() -> None:
    page = shown(job(820, progress={"total": 1e8, "current": 512, "message": "a.tif"}))
    assert "a.tif 512 B/95.37 MiB" in page.words


@pytest.mark.parametrize(
    "progress",
    [None, {}, {"total": 0, "current": 0}, {"total": "x", "current": 1}, {"total": True}],
)
def test_no_bar_without_a_total(progress: Any) -> None:
    page = shown(job(2, progress=progress))
    assert not [attrs for _, attrs in page.tags if "role" in attrs]


def test_a_bar_is_never_wider_than_its_place() -> None:
    page = shown(job(2, progress={"total": 2, "current": 5}))
    assert any(attrs.get("style") == "width:100.0%" for _, attrs in page.tags)


def test_a_group_counts_its_jobs() -> None:
    group = {"total": 1200, "done": 7, "failed": 2, "canceled": 1}
    page = shown(job(2, dask={"group": group}, progress={"total": 1200, "current": 10}))
    assert "7 of 1,200 jobs done, 2 failed, 1 canceled" in page.words


def test_the_link_leads_to_girder() -> None:
    url = f"https://girder.example.org/#job/{ID}"
    (link,) = [attrs for tag, attrs in shown(job(2), url=url).tags if tag == "a"]
    assert link == {"href": url, "target": "_blank", "rel": "noopener noreferrer"}


def test_a_link_that_is_none_is_text() -> None:
    page = shown(job(2), url="javascript:alert(1)")
    assert not [tag for tag, _ in page.tags if tag == "a"]


EVIL = "</div></style><script>alert('x')</script>\"><img src=x onerror=alert(1)>"


def test_nothing_of_a_job_is_read_as_html() -> None:
    document = job(
        2,
        title=EVIL,
        log=[EVIL + "\n"],
        progress={"total": 2, "current": 1, "message": EVIL},
    )
    document["_id"] = EVIL
    page = shown(document, url=f"https://x/#job/{EVIL}", note=EVIL)
    tags = [tag for tag, _ in page.tags]
    assert set(tags) == {"style", "div", "span", "a", "pre"}
    assert tags.count("style") == 1
    assert page.words.count(EVIL) == 3, "the title, the log and the note"


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "x"},
        {"status": [1]},
        {"status": 99},
        {"progress": {"total": math.inf, "current": 1.0}},
        {"progress": {"total": 5.0, "current": math.nan}},
        {"progress": {"total": 10**400, "current": 1}},
        {"dask": {"group": {"done": "<b>", "total": None, "failed": [], "canceled": math.inf}}},
    ],
    ids=str,
)
def test_fields_that_are_none_are_left_out(fields: dict[str, Any]) -> None:
    shown = render({"_id": "5f3c", "title": "T", **fields})
    assert "<b>" not in shown
    assert "job 5f3c" in shown


def test_a_note_comes_last() -> None:
    assert shown(job(2, log="one\n"), note="It stays.").words[-2:] == ["one", "It stays."]


def test_the_log_shows_its_end() -> None:
    pieces = [f"line {n}\n" for n in range(100_000)]
    assert tail(pieces) == [f"line {n}" for n in range(99_990, 100_000)]


def test_the_log_is_shown_as_a_terminal_would() -> None:
    assert tail("\x1b[31mred\x1b[0m\n 10%\r 20%\r 30%\n\x1b]x") == ["red", " 30%", "x"]
    assert tail("windows\r\nlines\r\n") == ["windows", "lines"]


def test_long_lines_are_cut() -> None:
    (line,) = tail("x" * 10_000)
    assert len(line) < 300
    assert line.endswith("…")


@pytest.mark.parametrize("log", [None, [], "", ["\n"]])
def test_no_log_no_place_for_it(log: Any) -> None:
    assert not [tag for tag, _ in shown(job(2, log=log)).tags if tag == "pre"]
