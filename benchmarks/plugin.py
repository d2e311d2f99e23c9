"""The Girder plugin of the benchmarks, which only the two measured Girders load."""

from __future__ import annotations

import os
import threading
from typing import Any

import cherrypy
from girder.api import access
from girder.api.rest import Resource
from girder.plugin import GirderPlugin, getPlugin

__all__ = ["BenchmarkPlugin"]


class BenchmarkPlugin(GirderPlugin):
    """Adds the routes under ``benchmark``, and counts requests."""

    DISPLAY_NAME = "Benchmarks"

    def load(self, info: dict[str, Any]) -> None:
        """Load the plugin of the system that is measured, and add the routes."""
        getPlugin(os.environ["BENCHMARK_PLUGIN"]).load(info)
        info["apiRoot"].benchmark = Benchmark()


class Benchmark(Resource):
    """Routes that start jobs within one request, and that return the number of requests."""

    def __init__(self) -> None:
        super().__init__()
        self.resourceName = "benchmark"
        self._requests = 0
        self._lock = threading.Lock()
        cherrypy.engine.subscribe("after_request", self._count)
        self.route("POST", ("start", ":name"), self.start)
        self.route("GET", ("requests",), self.requests)

    def _count(self) -> None:
        if not cherrypy.request.path_info.startswith("/benchmark"):
            with self._lock:
                self._requests += 1

    @access.admin
    def start(self, name: str, params: dict[str, Any]) -> Any:  # noqa: ARG002
        """Call one of ``benchmark_tasks.STARTS`` with the keyword arguments in the body."""
        from benchmark_tasks import STARTS

        return STARTS[name](**self.getBodyJson())

    @access.admin
    def requests(self, params: dict[str, Any]) -> int:  # noqa: ARG002
        """Return the number of answered requests, without those to these two routes."""
        return self._requests
