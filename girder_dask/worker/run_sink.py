"""The sink of one run, which takes its output, progress, status and end to the outbox."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec, RetryRequest
from girder_dask.protocol.redaction import Secrets, clean_data
from girder_dask.utils.text import clean_text
from girder_dask.worker.job_log.log import JobLog

if TYPE_CHECKING:
    from girder_dask.worker.outbox import Outbox

__all__ = ["MAX_EVENT_CHARACTERS", "RunSink"]

#: Characters of output in one event.
MAX_EVENT_CHARACTERS = 1 << 20
# Characters of output that a run sends before it asks the scheduler for room. So one job with
# much output neither fills the scheduler nor delays the others.
_ROOM_CHARACTERS = 4 << 20
# Images of one run that are recorded with its job.
_MAX_IMAGES = 20
# Seconds between two batches that a job forces with flush().
_FLUSH_INTERVAL_S = 0.02


class RunSink:
    """The sink of the events of one run. Any thread may call its methods.

    Parameters
    ----------
    outbox
        The outbox of the worker.
    spec
        The spec as the scheduler sent it; events carry its attempt.
    run
        The id of the run.
    log
        Parameters of the run's log.

    Attributes
    ----------
    secrets
        Secrets to blank in everything that the run sends. Closed with the run.
    images
        The digests of the images of which the run has made containers, by name.
    ended
        Whether the end of the run was sent. Nothing comes after it.
    """

    def __init__(self, outbox: Outbox, spec: JobSpec, run: str, log: Mapping[str, Any]) -> None:
        self._outbox = outbox
        self.spec = spec
        self.run = run
        self.log = JobLog(on_text=self._mark, **log)
        self.secrets = Secrets(spec.token)
        self._progress: dict[str, Any] = {}
        self._last_flush = float("-inf")
        self._sent_without_room = 0
        self.images: dict[str, str] = {}
        self.ended = False
        self._cleaners: dict[str, Callable[[Any], Any]] = {
            "log": lambda text: clean_text(self.secrets.clean_log(text)),
            "error": lambda text: clean_text(self.secrets.clean_text(text)),
            "progress": self._clean_progress,
            "exception": clean_data,
        }

    def _clean_progress(self, progress: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: self.secrets.clean_text(value) if isinstance(value, str) else value
            for name, value in progress.items()
        }

    def _mark(self) -> None:
        self._outbox.mark(self)

    def write(self, text: str) -> None:
        """Append text to the job's log."""
        self.log.write(text)

    def progress(self, changes: Mapping[str, Any]) -> None:
        """Set some of ``total``, ``current`` and ``message``; only the newest is sent."""
        with self._outbox.lock:
            if self.ended:  # a thread that the task left behind
                return
            self._progress.update(changes)
        self._mark()

    def status(self, status: JobStatus) -> None:
        """Report the next status of the job."""
        self._outbox.post(self._event(status=int(status)))

    def image(self, name: str, digest: str) -> None:
        """Report the image of a container. Of many images, the first ones are kept."""
        if name in self.images or len(self.images) < _MAX_IMAGES:
            self.images[name] = digest
            self._outbox.post(self._event(images={name: digest}))

    def flush(self) -> None:
        """Send waiting output before the flush interval is over, up to fifty times a second."""
        now = time.monotonic()
        if now - self._last_flush >= _FLUSH_INTERVAL_S:
            self._last_flush = now
            self._outbox.wake(urgent=True)

    def confirm(self, timeout_s: float) -> bool:
        """Wait until all events are acknowledged. Return True if this run still has the job.

        It no longer has the job if that was given to another worker meanwhile, or if the
        scheduler has lost this worker.
        """
        acknowledged = self._outbox.barrier()
        return acknowledged.wait(timeout_s) and not self.is_dropped

    @property
    def is_dropped(self) -> bool:
        """Whether the scheduler is known to ignore the run."""
        return self._outbox.closed or self._outbox.is_dropped(self.run)

    def finish(
        self,
        status: JobStatus | None,
        *,
        result: bytes | None = None,
        error: str | None = None,
        exception: bytes | None = None,
        permanent: bool = False,
        retry: RetryRequest | None = None,
    ) -> None:
        """Report how the run ended, together with the rest of its log.

        ``status`` is None if another run reports how the job ends, and if this one asks for a
        ``retry``.
        """
        now = time.time()
        self.log.close()
        with self._outbox.lock:
            self.ended = True
            # In one step, so that the sender takes no text after the end.
            texts = list(iter(functools.partial(self.log.take, MAX_EVENT_CHARACTERS), ""))
            for text in texts[:-1]:
                self._outbox.post(self._event(time=now, log=text))
            event = self._event(
                time=now,
                status=None if status is None else int(status),
                log=texts[-1] if texts else None,
                progress=self._take_progress(),
                result=result,
                error=error,
                exception=exception,
                permanent=permanent or None,
                retry=retry,
            )
            self._outbox.forget(self)
            self._outbox.post(event)

    # -- for the outbox, which holds its lock --------------------------------------------------

    def take_event(self) -> JobEvent | None:
        """Return waiting output and progress as an event, None if there is neither."""
        text = "" if self.needs_room else self.log.take(MAX_EVENT_CHARACTERS)
        self._sent_without_room += len(text)
        progress = self._take_progress()
        if not text and progress is None:
            return None
        return self._event(log=text or None, progress=progress)

    @property
    def needs_room(self) -> bool:
        """Whether the scheduler must be asked for room before more output is sent."""
        return self._sent_without_room >= _ROOM_CHARACTERS

    def resume(self) -> None:
        """Send output again, as the scheduler has room."""
        self._sent_without_room = 0
        self._mark()

    def _take_progress(self) -> dict[str, Any] | None:
        progress, self._progress = self._progress, {}
        return progress or None

    def _event(self, **fields: Any) -> JobEvent:
        fields.setdefault("time", time.time())
        for name, clean in self._cleaners.items():
            if fields.get(name) is not None:
                fields[name] = clean(fields[name])
        return JobEvent(
            id=self.spec.id,
            attempt=self.spec.attempt,
            run=self.run,
            worker=self._outbox.worker,
            **fields,
        )
