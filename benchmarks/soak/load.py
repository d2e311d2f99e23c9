"""The load of a soak: jobs of all kinds, started in Girder and from outside."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import girder_client
import requests
from my_worker_tasks import add_one, tally

from benchmarks.soak.kinds import CONTENT, IN_GIRDER, OUTSIDE, Places, start_in_girder, title
from girder_dask import connect
from girder_dask.errors import GirderError
from girder_dask.transforms import GirderUploadToFolder
from tests.support.fault_site import FaultStack

__all__ = ["Load"]

#: Seconds after which a job that is to be canceled is canceled, whether it runs or waits.
_CANCEL_AFTER_S = 3.0
_MAP_SIZE = 10


@dataclass
class Load:
    """Calls at a rate, each with a number and a kind.

    A call is accepted if it returned the id of a job. What became of any other is not known to the
    caller, but there is at most one job of it.

    Parameters
    ----------
    stack
        The stack.
    directory
        The directory of the files in which tasks note their runs.
    rate
        The number of calls in a second.
    seed
        The seed of the order of the kinds.
    """

    stack: FaultStack
    directory: Path
    rate: float
    seed: int
    kinds: dict[int, str] = field(default_factory=dict)
    accepted: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    #: What no loss of a part explains.
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.user = self.stack.create_user()
        above = self.user.folder["_id"]
        inputs = self.user.client.createFolder(above, "inputs")["_id"]
        outputs = self.user.client.createFolder(above, "outputs")["_id"]
        self.directory.mkdir()
        file = self.stack.upload(CONTENT, client=self.user.client, folder=inputs)["_id"]
        self.places = Places(str(self.directory), str(outputs), str(file))
        self._to_cancel: deque[tuple[float, str]] = deque()
        self._canceler = self.stack.client()
        self._numbers = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start jobs while the block runs."""
        over = threading.Event()
        ways: list[tuple[tuple[str, ...], Callable[[str, int], str]]] = [
            (IN_GIRDER, self._start_in_girder),
            (OUTSIDE, self._start_outside),
        ]
        share = [len(kinds) / len(IN_GIRDER + OUTSIDE) for kinds, _ in ways]
        with connect(self.stack.girder, api_key=self.stack.api_key):
            threads = [
                threading.Thread(
                    target=self._start_jobs,
                    args=(over, random.Random(self.seed + n), self.rate * part, *way),  # noqa: S311
                    name=f"load-{n}",
                )
                for n, (part, way) in enumerate(zip(share, ways, strict=True))
            ]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                over.set()
                for thread in threads:
                    thread.join()

    def _start_jobs(
        self,
        over: threading.Event,
        chance: random.Random,
        rate: float,
        kinds: tuple[str, ...],
        start: Callable[[str, int], str],
    ) -> None:
        due = time.monotonic()
        order: list[str] = []
        while not over.is_set():
            # Each kind as often as the others.
            order = order or chance.sample(kinds, len(kinds))
            self._start(order.pop(), start)
            self._cancel_some()
            due = max(due + 1 / rate, time.monotonic() - 1.0)
            over.wait(max(0.0, due - time.monotonic()))

    def _start(self, kind: str, start: Callable[[str, int], str]) -> None:
        with self._numbers:
            number = len(self.kinds)
            self.kinds[number] = kind
        try:
            self.accepted[number] = start(kind, number)
        except (GirderError, requests.RequestException, girder_client.HttpError) as e:
            self.refused[number] = f"{type(e).__name__}: {e}"
            return
        except Exception as e:  # noqa: BLE001 - the soak goes on, and has failed
            self.errors.append(f"call {number}, {kind}: {e!r}")
            return
        if kind == "canceled":
            self._to_cancel.append((time.monotonic(), self.accepted[number]))

    def _start_in_girder(self, kind: str, number: int) -> str:
        args = (kind, number, title(kind, number), self.places)
        return str(self.stack.call(start_in_girder, *args, user=self.user))

    def _start_outside(self, kind: str, number: int) -> str:
        name = title(kind, number)
        if kind == "map":
            job = add_one.options(title=name).map(range(_MAP_SIZE))
        else:
            hooks = [GirderUploadToFolder(self.places.outputs)]
            args = [self.places.tally, number, [0.5], f"out-{number}.txt"]
            job = tally.apply_async(args, girder_job_title=name, girder_result_hooks=hooks)
        return str(job.id)

    def _cancel_some(self) -> None:
        with contextlib.suppress(IndexError):
            while self._to_cancel[0][0] < time.monotonic() - _CANCEL_AFTER_S:
                self._cancel(self._to_cancel.popleft()[1])

    def _cancel(self, job_id: str) -> None:
        try:
            self._canceler.put(f"job/{job_id}/cancel")
        except girder_client.HttpError:
            return  # an answer was lost, and it has ended
        except (GirderError, requests.RequestException):
            self._to_cancel.append((time.monotonic(), job_id))

    def cancel_rest(self) -> None:
        """Cancel those that are still to be canceled."""
        while self._to_cancel:
            self._cancel(self._to_cancel.popleft()[1])
