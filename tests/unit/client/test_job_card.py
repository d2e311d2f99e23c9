"""The card of a job in a notebook."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from ipywidgets import HTML

from girder_dask import JobResult
from girder_dask.client import job_card, progress_bar
from girder_dask.client.backend import set_backend
from girder_dask.errors import GirderError, NotConnectedError
from girder_dask.jobs import JobStatus
from tests.support.recording_backend import RecordingBackend


class Site(RecordingBackend):
    api_url = "https://girder.example.org/api/v1"

    def __init__(self) -> None:
        super().__init__()
        self.fails: Exception | None = None
        self.logs_read = 0

    def load_jobs(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        if self.fails is not None:
            raise self.fails
        return super().load_jobs(job_ids)

    def load_job(self, job_id: str, *, log: bool = False) -> dict[str, Any]:
        self.logs_read += log
        return super().load_job(job_id, log=log)

    def tell(self, **fields: Any) -> None:
        self.jobs["a"] = {**self.jobs["a"], **fields}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(progress_bar, "is_notebook", lambda: True)
    monkeypatch.setattr(job_card, "_MIN_POLL_S", 0.02)
    monkeypatch.setattr(job_card, "_MAX_LOG_TIME_SHARE", 1.0)
    site = Site()
    site.jobs["a"] = {"_id": "a", "title": "Count", "status": 2, "log": ["one\n"]}
    set_backend(site)
    yield site
    site.tell(status=int(JobStatus.SUCCESS))
    until(lambda: not followers())
    set_backend(None)
    job_card._cards.clear()


def followers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("card of job")]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def live() -> tuple[dict[str, Any], job_card.JobCard]:
    bundle = JobResult("a")._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    return data, job_card._cards["a"]


def test_a_card_follows_the_job_to_its_end(site: Site) -> None:
    data, shown = live()
    assert data["text/plain"] == "<JobResult a>"
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == shown.widget.model_id
    assert "one" in data["text/html"]
    assert "https://girder.example.org/#job/a" in shown.widget.value
    site.tell(progress={"total": 4, "current": 1}, log=["one\n", "two\n"])
    until(lambda: "two" in shown.widget.value)
    assert "width:25.0%" in shown.widget.value
    site.tell(status=int(JobStatus.ERROR), log=["Traceback\n"])
    until(lambda: not followers())
    assert "Traceback" in shown.widget.value
    assert ">error<" in shown.widget.value


def test_the_log_is_read_when_something_has_changed(site: Site) -> None:
    live()
    until(lambda: site.loads > 20)
    assert site.logs_read == 2


def test_a_job_that_is_shown_twice_is_followed_once(site: Site) -> None:
    _, first = live()
    _, second = live()
    assert first is second
    assert len(followers()) == 1


def test_a_card_that_is_on_show_no_more_stops_and_begins_again(site: Site) -> None:
    _, shown = live()
    shown.widget._view_count = 1
    shown.widget._view_count = 0
    until(lambda: not followers())
    site.tell(log=["three\n"], progress={})
    shown.widget._view_count = 1
    until(lambda: "three" in shown.widget.value)
    assert len(followers()) == 1


def test_a_closed_widget_stops(site: Site) -> None:
    _, shown = live()
    shown.widget.close()
    until(lambda: not followers())
    assert shown.is_over
    _, other = live()
    assert other is not shown


def test_a_girder_that_is_away_is_asked_again(site: Site) -> None:
    _, shown = live()
    site.fails = GirderError("away")
    until(lambda: "does not answer at the moment" in shown.widget.value)
    site.fails = None
    site.tell(log=["back\n"], progress={"total": 1, "current": 1})
    until(lambda: "back" in shown.widget.value)


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (GirderError("gone", status=404), "was deleted, or you may no longer read it"),
        (NotConnectedError("closed"), "connection to Girder was closed"),
    ],
)
def test_a_card_may_have_nothing_to_follow(site: Site, error: Exception, note: str) -> None:
    _, shown = live()
    site.fails = error
    until(lambda: not followers())
    assert note in shown.widget.value


def test_a_job_that_has_ended_needs_no_widget(site: Site) -> None:
    site.tell(status=int(JobStatus.SUCCESS))
    data = JobResult("a")._repr_mimebundle_()
    assert data.keys() == {"text/plain", "text/html"}
    assert ">success<" in data["text/html"]
    assert followers() == []


def test_without_ipywidgets_a_card_stays_as_it_is(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    data = JobResult("a")._repr_mimebundle_()
    assert data.keys() == {"text/plain", "text/html"}
    assert "Install ipywidgets" in data["text/html"]


def test_a_terminal_gets_text_and_asks_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "is_notebook", lambda: False)
    assert JobResult("a")._repr_mimebundle_() == {"text/plain": "<JobResult a>"}
    assert site.loads == 0


def test_what_cannot_be_asked_is_shown_as_text(site: Site) -> None:
    assert JobResult("gone")._repr_mimebundle_() == {"text/plain": "<JobResult gone>"}
    set_backend(None)
    assert JobResult("a")._repr_mimebundle_() == {"text/plain": "<JobResult a>"}
    set_backend(site)


def test_a_card_is_a_widget(site: Site) -> None:
    _, shown = live()
    assert isinstance(shown.widget, HTML)
