"""Requests that a site answers while something else keeps it busy."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["OtherRequests"]

_INTERVAL_S = 0.5


class OtherRequests:
    """Context manager that does requests in turn, one each half second, and measures them.

    Parameters
    ----------
    client
        A ``GirderClient``.
    paths
        What is read, by the names of the requests.
    """

    def __init__(self, client: Any, paths: Mapping[str, str]) -> None:
        #: The seconds of each answer, by the name of the request.
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._client = client
        self._paths = dict(paths)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    @property
    def slowest_s(self) -> float:
        """The seconds of the slowest answer."""
        return max(max(each) for each in self.seconds.values())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            for name, path in self._paths.items():
                begin = time.perf_counter()
                self._client.get(path)
                self.seconds[name].append(time.perf_counter() - begin)
                if self._stopped.wait(_INTERVAL_S):
                    return
