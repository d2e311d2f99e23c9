"""Workers that are connected to a scheduler and run nothing, many in one thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["connected_workers"]


@contextlib.contextmanager
def connected_workers(scheduler: str, number: int, queue: str) -> Iterator[list[str]]:
    """Connect workers that serve a queue, and yield their names. No task must be sent there."""
    names = [f"connected-{n}" for n in range(number)]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="connected-workers")
    thread.start()

    async def connect_all() -> list[Any]:
        from distributed.versions import get_versions

        versions = get_versions()
        return [await _connect(scheduler, name, queue, versions) for name in names]

    async def close_all(comms: list[Any]) -> None:
        await asyncio.gather(*(comm.close() for comm in comms))

    try:
        comms = asyncio.run_coroutine_threadsafe(connect_all(), loop).result(120)
        try:
            yield names
        finally:
            asyncio.run_coroutine_threadsafe(close_all(comms), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _connect(scheduler: str, name: str, queue: str, versions: Any) -> Any:
    """Register a worker as Dask's own does, and return its connection."""
    from distributed.comm import connect  # type: ignore[attr-defined]

    comm = await connect(scheduler)
    number = int(name.rpartition("-")[2])
    await comm.write(
        {
            "op": "register-worker",
            "reply": False,
            # Nobody listens there.
            "address": f"tcp://127.1.{number // 250}.{1 + number % 250}:9",
            "status": "running",
            "nthreads": 1,
            "name": name,
            "now": time.time(),
            "resources": {f"queue:{queue}": 1},
            "memory_limit": 2**30,
            "local_directory": "",
            "services": {},
            "nanny": None,
            "pid": 0,
            "versions": versions,
            "metrics": {
                "task_counts": {},
                "bandwidth": {"total": 1e8, "workers": {}, "types": {}},
                "managed_bytes": 0,
                "spilled_bytes": {"memory": 0, "disk": 0},
                "event_loop_interval": 0.02,
                "cpu": 0,
                "memory": 0,
                "host": {},
                "executing": {},
                "digests_total_since_heartbeat": {},
            },
            "extra": {},
            "stimulus_id": f"worker-connect-{name}",
            "server_id": name,
        },
        serializers=["msgpack"],
    )
    answer = await comm.read(deserializers=["msgpack"])
    assert answer["status"] == "OK", answer
    return comm
