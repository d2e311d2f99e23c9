"""A client that records one map of very many jobs over REST, and prints what that took as JSON.

It is a process of its own, so that its memory is that of a user's script.
"""

from __future__ import annotations

import json
import os
import sys
import time

import psutil

import girder_dask

__all__ = ["main"]


def main(api: str, jobs: int) -> None:
    """Record the map with the API key of the environment."""
    from benchmark_tasks import noop

    with girder_dask.connect(api, api_key=os.environ["GIRDER_API_KEY"]):
        before = psutil.Process().memory_info().rss
        begin = time.perf_counter()
        # A generator: the client knows neither the number of the calls nor all of them.
        result = noop.map((n for n in range(jobs)), total=jobs)
        seconds = time.perf_counter() - begin
        grown = psutil.Process().memory_info().rss - before
    print(json.dumps({"parent": result.id, "seconds": seconds, "grown_mib": grown / 2**20}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
