"""The calls of a map, made one after the other from iterables."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import datetime, timezone
from typing import Any

from msgspec.structs import replace

from girder_dask.client import futures
from girder_dask.client.backend import Backend
from girder_dask.client.map_jobs import MapJobs
from girder_dask.client.result import JobResult, MapResult
from girder_dask.errors import GirderError, JobCanceled, SubmissionError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import MapParent, Submission
from girder_dask.protocol.request_limits import PIECE_BYTES, PIECE_JOBS
from girder_dask.tasks import options as call_options
from girder_dask.tasks.options import TaskSettings

__all__ = ["MAP_OPTIONS", "MapCalls", "known_length", "start"]

#: The options of ``map`` and ``starmap`` beside those of ``delay``.
MAP_OPTIONS = ("girder_map_total", "girder_map_titles", "girder_map_hooks")

# After this time a piece is sent, however small. Girder must not take its sender for dead.
_PIECE_TIME_S = 10.0

# Makes the submission of a call from its arguments and options.
_Submit = Callable[[tuple[Any, ...], Mapping[str, Any], Mapping[str, Any]], Submission]


def known_length(iterables: Iterable[Any]) -> int | None:
    """Return how many elements ``map`` takes of these iterables, None if one has no length.

    >>> known_length([[1, 2, 3], "ab"]), known_length([[1], iter([2])])
    (2, None)
    """
    given = list(iterables)
    if not all(isinstance(each, Sized) for each in given):
        return None
    return min((len(each) for each in given), default=None)


class MapCalls:
    """The calls of a map.

    Parameters
    ----------
    name, settings
        Name and settings of the task.
    submit
        Makes the submission of one call.
    rows
        The positional arguments of each call. Read once, as the calls are made.
    length
        The number of rows, None if it is unknown.
    kwargs
        The keyword arguments and options that were given to ``map``.
    """

    def __init__(
        self,
        name: str,
        settings: TaskSettings,
        submit: _Submit,
        rows: Iterable[tuple[Any, ...]],
        length: int | None,
        kwargs: Mapping[str, Any],
    ) -> None:
        self._name = name
        self._submit = submit
        self._own = {option: kwargs.get(option) for option in MAP_OPTIONS}
        others = {key: value for key, value in kwargs.items() if key not in MAP_OPTIONS}
        self._arguments, self._options = call_options.split(others)
        if self._options.pop("girder_job_disable", False):
            raise SubmissionError(
                f"{name}.map() needs a parent job. Without jobs, use Dask's Client.map. "
                "No job was created.",
                task=name,
            )
        self._fix_start(settings)
        self._rows, self.total = self._counted(rows, length)
        #: The parent job.
        self.parent: MapParent = replace(
            call_options.map_parent(name, settings, self._options), total=self.total
        )

    def _fix_start(self, settings: TaskSettings) -> None:
        """Compute the earliest start once, so that it is the same for all calls."""
        moment = call_options.earliest_start(self._name, settings, self._options)
        if moment is not None:
            self._options["eta"] = datetime.fromtimestamp(moment, timezone.utc)

    def _counted(
        self, rows: Iterable[tuple[Any, ...]], length: int | None
    ) -> tuple[Iterator[tuple[Any, ...]], int | None]:
        """Return the rows, and how many they are as far as that is known."""
        given = self._own["girder_map_total"]
        if given is not None and not _is_count(given):
            raise SubmissionError(
                f"{self._name}.map() was given total={given!r:.200}, which is not a number of "
                "calls. No job was created.",
                task=self._name,
            )
        rows = iter(rows)
        total = length if given is None else int(given)
        if total is None:
            first = list(itertools.islice(rows, PIECE_JOBS + 1))
            rows = itertools.chain(first, rows)
            total = len(first) if len(first) <= PIECE_JOBS else None
        return rows, total

    def __iter__(self) -> Iterator[Submission]:
        """Make the submissions.

        Raises
        ------
        SubmissionError
            If a call cannot become a job. It names the call.
        """
        titles = self._each("girder_map_titles")
        hooks = self._each("girder_map_hooks")
        of_all = "" if self.total is None else f"/{self.total:,}"
        for n, row in enumerate(self._rows, 1):
            options = dict(self._options)
            title = titles(n, row)
            number = f"{n:,}{of_all}"
            options["girder_job_title"] = (
                f"{self.parent.title} {number}" if title is None else title
            )
            if self._own["girder_map_hooks"] is not None:
                options["girder_result_hooks"] = hooks(n, row)
            yield self._submit(row, self._arguments, options)

    def _each(self, option: str) -> Callable[[int, tuple[Any, ...]], Any]:
        """Return a function that returns the value of an option for one call."""
        given = self._own[option]
        if given is None:
            return lambda _n, _row: None
        if callable(given):
            return lambda _n, row: given(*row)
        if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
            raise SubmissionError(
                f"{self._name}.map() was given {option}={given!r:.200}. Give a function of the "
                "arguments of one call, or a list with a value for each call.",
                task=self._name,
            )
        values = iter(given)

        def take(n: int, _row: tuple[Any, ...]) -> Any:
            try:
                return next(values)
            except StopIteration:
                raise SubmissionError(
                    f"{self._name}.map() has a call {n:,}, and {option} has only {n - 1:,} "
                    "values. Give a value for each call.",
                    task=self._name,
                ) from None

        return take


def start(backend: Backend, calls: MapCalls) -> MapResult:
    """Record the calls of a map and their parent in pieces, and return them.

    If a later piece fails, the map is canceled, as far as Girder can be reached.

    Raises
    ------
    SubmissionError, GirderError
        If they are not all recorded. If there is a map, a note of the exception names it.
    JobCanceled
        If the map was canceled meanwhile.
    """
    pieces = _pieces(calls)
    first, is_last = next(pieces)
    job, *children = backend.submit(first, calls.parent, more=not is_last)
    jobs = MapJobs(map(JobResult, children))
    result = MapResult(job, jobs)
    try:
        futures.pin(backend, jobs.known())
        while not is_last:
            piece, is_last = next(pieces)
            ids = backend.extend_map(result.id, piece, offset=len(jobs), is_last=is_last)
            jobs.extend(ids, keep=getattr(backend, "pins", False))
            futures.pin(backend, jobs.known()[-len(ids) :] if ids else [])
    except BaseException as e:
        _give_up(backend, result, e)
        raise
    return result


def _pieces(calls: Iterable[Submission]) -> Iterator[tuple[list[Submission], bool]]:
    """Yield the calls in pieces, each with whether it is the last. There is at least one."""
    piece: list[Submission] = []
    size, began = 0, time.monotonic()
    for call in calls:
        is_full = len(piece) >= PIECE_JOBS or size + len(call.payload) > PIECE_BYTES
        if piece and (is_full or time.monotonic() - began > _PIECE_TIME_S):
            yield piece, False
            piece, size, began = [], 0, time.monotonic()
        piece.append(call)
        size += len(call.payload)
    yield piece, True


def _give_up(backend: Backend, result: MapResult, error: BaseException) -> None:
    """Cancel a map that was sent in part, and add to the error what has become of it.

    Raises
    ------
    JobCanceled
        If it was canceled before.
    """
    sent = f"{len(result):,} of its jobs were recorded"
    try:
        states = backend.load_jobs([result.id])
        if states and states[0]["status"] in (JobStatus.CANCELING, JobStatus.CANCELED):
            raise JobCanceled(
                f"Map {result.id} was canceled after {sent}.", job_id=result.id
            ) from error
        backend.cancel(result.id)
    except GirderError as e:
        error.add_note(f"Map {result.id} ends in ERROR, as it is incomplete: {sent} ({e})")
    else:
        error.add_note(f"Map {result.id} was canceled: {sent}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
