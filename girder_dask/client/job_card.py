"""Live card of a job in a notebook, kept up to date while the job runs."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from girder_dask.client import progress_bar
from girder_dask.client.backend import Backend, get_backend
from girder_dask.client.card_html import render
from girder_dask.errors import GirderDaskError, NotConnectedError
from girder_dask.jobs import FINAL
from girder_dask.utils.background import Guard

if TYPE_CHECKING:
    from ipywidgets import HTML

    from girder_dask.client.result import JobResult

__all__ = ["JobCard", "mimebundle"]

logger = logging.getLogger(__name__)

_MIN_POLL_S, _MAX_POLL_S, _POLL_GROWTH = 0.3, 5.0, 1.15
# Each update loads the whole log. Loading takes at most this share of the time.
_MAX_LOG_TIME_SHARE = 0.1


#: The live cards by job, so that a job which is shown twice is polled once.
_cards: weakref.WeakValueDictionary[str, JobCard] = weakref.WeakValueDictionary()


def mimebundle(
    result: JobResult, include: Any = None, exclude: Any = None
) -> dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]:
    """Return the representations of a job for Jupyter: a card, live if ipywidgets is installed.

    ``include`` and ``exclude`` are IPython's, which applies them to what this returns.
    """
    plain = {"text/plain": repr(result)}
    if not progress_bar.is_notebook():
        return plain
    try:
        backend = get_backend()
        job = backend.load_job(result.id, log=True)
    except GirderDaskError as e:
        logger.info("Job %s is shown without a card: %s", result.id, e)
        return plain
    html = render(job, url=_page(backend, result.id))
    static = {**plain, "text/html": html}
    if job["status"] in FINAL:
        return static
    widget = _live_widget(backend, job, html)
    if widget is None:
        note = "This card is not updated. Install ipywidgets for a live one."
        return {**plain, "text/html": render(job, url=_page(backend, result.id), note=note)}
    bundle = widget._repr_mimebundle_(include=include, exclude=exclude)
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    return {**(data or {}), **static}, metadata


def _live_widget(backend: Backend, job: Mapping[str, Any], html: str) -> HTML | None:
    try:
        from ipywidgets import HTML
    except ImportError:
        return None
    card = _cards.get(str(job["_id"]))
    if card is None or card.is_over:
        # With a count of 0, the notebook reports how often the widget is displayed.
        card = JobCard(backend, job, HTML(value=html, _view_count=0))
        _cards[str(job["_id"])] = card
        card.follow()
    return card.widget


class JobCard:
    """A widget that shows a job, and the thread that updates it.

    The thread ends when the job has ended, when the widget is closed or no longer displayed,
    when the connection to Girder is closed, and with the kernel. It starts again when the widget
    is displayed again.

    Parameters
    ----------
    backend
        The connection to Girder.
    job
        The job document, with its log.
    widget
        An ``ipywidgets.HTML``.
    """

    def __init__(self, backend: Backend, job: Mapping[str, Any], widget: Any) -> None:
        self.widget = widget
        self._backend = backend
        self._job = dict(job)
        self._state: Mapping[str, Any] | None = None
        self._was_seen = False
        self._pause, self._next_look = _MIN_POLL_S, 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        #: Whether the widget is final.
        self.is_over = False
        widget.observe(self._on_views, names="_view_count")

    def follow(self) -> None:
        """Update the widget from a thread."""
        with self._lock:
            if self._thread is None and not self.is_over:
                self._thread = threading.Thread(
                    target=self._run, name=f"card of job {self._job['_id']}", daemon=True
                )
                self._thread.start()

    def _on_views(self, change: Mapping[str, Any]) -> None:
        views = change["new"] or 0
        self._was_seen = self._was_seen or views > 0
        self._wake.set()
        if views > 0:
            self.follow()

    def _is_wanted(self) -> bool:
        """Return True if the widget may be displayed and is not final."""
        is_hidden = self._was_seen and not self.widget._view_count  # noqa: SLF001 - its only name
        return not (self.is_over or self._is_closed or is_hidden)

    @property
    def _is_closed(self) -> bool:
        return self.widget.comm is None

    def _run(self) -> None:
        self._pause, self._next_look = _MIN_POLL_S, 0.0
        guard = Guard(logger, f"The card of job {self._job['_id']}", max_delay_s=_MAX_POLL_S)
        while not self._stop_if_unwanted():
            with guard:
                self._step()
            time.sleep(guard.delay_s)

    def _stop_if_unwanted(self) -> bool:
        """End the thread if the widget needs no updates. Return True if it ends."""
        with self._lock:
            if self._is_wanted():
                return False
            self.is_over = self.is_over or self._is_closed
            self._thread = None
            return True

    def _step(self) -> None:
        begun = time.monotonic()
        if begun >= self._next_look:
            changed = self._poll()
            spent = time.monotonic() - begun
            self._pause = _MIN_POLL_S if changed else min(self._pause * _POLL_GROWTH, _MAX_POLL_S)
            self._next_look = time.monotonic() + max(self._pause, spent / _MAX_LOG_TIME_SHARE)
        self._wake.wait(min(1.0, max(self._next_look - time.monotonic(), 0.05)))
        self._wake.clear()
        if not self.is_over:
            self._draw()

    def _poll(self) -> bool:
        """Load the job from Girder. Return True if it has changed."""
        job_id = str(self._job["_id"])
        try:
            states = self._backend.load_jobs([job_id])
            state = states[0] if states else None
            if state is not None and state == self._state:
                return False
            self._job = self._backend.load_job(job_id, log=True)
            self._state = state
        except NotConnectedError:
            self._end("The connection to Girder was closed. This card is no longer updated.")
            return False
        except GirderDaskError as e:
            self._fail(e)
            return False
        if self._job["status"] in FINAL:
            self._end(None)
        else:
            self._draw()
        return True

    def _fail(self, error: GirderDaskError) -> None:
        status = getattr(error, "status", None)
        if status in (400, 401, 403, 404):
            self._end("The job was deleted, or you may no longer read it.")
        else:
            self._draw("Girder does not answer at the moment.")

    def _end(self, note: str | None) -> None:
        self.is_over = True
        self._draw(note)

    def _draw(self, note: str | None = None) -> None:
        page = _page(self._backend, str(self._job["_id"]))
        self.widget.value = render(self._job, url=page, note=note)


def _page(backend: Backend, job_id: str) -> str | None:
    """Return the address of a job's page in Girder, or None if this process does not know it."""
    api_url = getattr(backend, "api_url", None)
    if not isinstance(api_url, str):
        return None
    return f"{api_url.removesuffix('/api/v1')}/#job/{job_id}"
