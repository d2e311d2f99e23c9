"""Simulated workers: one process that holds the connections of many, and runs nothing.

``python -m benchmarks.simulated_workers ADDRESS --workers N`` registers N workers of one thread
with a scheduler. Each has connections of its own, sends heartbeats at the pace that the scheduler
asks for, takes the tasks of jobs, and reports at once that they have started and succeeded: to Dask
as a task that has finished, and to girder_dask by an outbox of its own, which batches events as
that of a real worker does. So the scheduler does for each job what it does with real workers.

What differs: jobs take no time, no worker serves data to another one, and no value leaves a worker.
A worker reports the same figures of its memory and its processor with each heartbeat.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import time
from collections.abc import Collection, Mapping
from typing import Any

from distributed.batched import BatchedSend
from distributed.comm import CommClosedError, connect
from distributed.core import rpc
from distributed.protocol.pickle import dumps
from distributed.versions import get_versions

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent
from girder_dask.protocol.payload import pack_value
from girder_dask.worker.outbox import Outbox

__all__ = ["SimulatedWorker", "serve"]

# As girder_dask.yaml has it.
_FLUSH_INTERVAL_S = 0.3
_MEMORY_BYTES = 2**30
_RESULT_BYTES = 16
_NONE_TYPE = dumps(type(None))
_NOTHING = pack_value(None)
_VERSIONS = get_versions()
# So many register at once.
_STARTING_WORKERS = 20
_FIRST_HEARTBEAT_S = 1.0
# Nothing listens there: the scheduler only connects to a worker that has values for others.
_FIRST_PORT = 1_024


class SimulatedWorker:
    """A worker that succeeds in each job at once.

    Parameters
    ----------
    scheduler
        The address of the scheduler.
    name
        The name of the worker, unique in the cluster.
    address
        The address by which the scheduler knows it, unique too.
    """

    def __init__(self, scheduler: str, name: str, address: str) -> None:
        self._address = scheduler
        self._name = name
        self.address = address
        self._scheduler = rpc(scheduler)
        self._stream = BatchedSend(interval="2ms")
        self._runs = itertools.count(1)

    async def run(self, registered: asyncio.Semaphore) -> None:
        """Register, and serve until the scheduler closes the connection."""
        async with registered:
            comm = await connect(self._address, deserialize=False)
            await comm.write(self._registration(), serializers=["msgpack"])
            answer = await comm.read()
        if answer["status"] != "OK":
            raise RuntimeError(f"Worker {self._name} is refused: {answer}")
        outbox = Outbox(
            self._send_events,
            interval_s=_FLUSH_INTERVAL_S,
            log_capacity=2**16,
            worker=self.address,
        )
        self._stream.start(comm)
        heartbeats = asyncio.create_task(self._send_heartbeats())
        try:
            while True:
                for message in await comm.read():
                    if message["op"] == "compute-task":
                        self._run_task(message, outbox)
                    elif message["op"] == "close":
                        return
        except CommClosedError:
            return
        finally:
            heartbeats.cancel()
            await outbox.close(0.0)
            self._stream.abort()
            await self._scheduler.close_rpc()

    def _registration(self) -> dict[str, Any]:
        return {
            "op": "register-worker",
            "reply": False,
            "address": self.address,
            "status": "running",
            "nthreads": 1,
            "name": self._name,
            "now": time.time(),
            "resources": {},
            "memory_limit": _MEMORY_BYTES,
            "local_directory": "",
            "services": {},
            "nanny": None,
            "pid": os.getpid(),
            "versions": _VERSIONS,
            "metrics": _metrics(),
            "extra": {},
            "stimulus_id": f"worker-connect-{time.time()}",
            "server_id": self._name,
        }

    async def _send_heartbeats(self) -> None:
        pause_s = _FIRST_HEARTBEAT_S
        while True:
            await asyncio.sleep(pause_s)
            answer = await self._scheduler.heartbeat_worker(
                address=self.address,
                now=time.time(),
                metrics=_metrics(),
                executing={},
                extensions={},
            )
            pause_s = answer.get("heartbeat-interval", pause_s)

    async def _send_events(
        self, outbox: str, batch: int, events: list[dict[str, Any]]
    ) -> Collection[str]:
        answer = await self._scheduler.girder_events(outbox=outbox, batch=batch, events=events)
        return set(answer["dropped"])

    def _run_task(self, message: Mapping[str, Any], outbox: Outbox) -> None:
        key, began = message["key"], time.time()
        if key.count("-") >= 2:
            # The key of a job ends in its id and its attempt.
            _, job_id, attempt = key.rsplit("-", 2)
            run = f"{self._name}-{next(self._runs)}"
            about = {"id": job_id, "attempt": int(attempt), "run": run, "worker": self.address}
            outbox.post(JobEvent(time=began, status=int(JobStatus.RUNNING), **about))
            outbox.post(
                JobEvent(time=began, status=int(JobStatus.SUCCESS), result=_NOTHING, **about)
            )
        self._stream.send(
            {
                "op": "task-finished",
                "status": "OK",
                "key": key,
                "run_id": message["run_id"],
                "nbytes": _RESULT_BYTES,
                "type": _NONE_TYPE,
                "typename": "NoneType",
                "metadata": {},
                "thread": 1,
                "startstops": [{"action": "compute", "start": began, "stop": time.time()}],
                "stimulus_id": message["stimulus_id"],
            }
        )


def _metrics() -> dict[str, Any]:
    """Return the figures that the scheduler reads of a worker."""
    return {
        "task_counts": {},
        "bandwidth": {"total": 1e8, "workers": {}, "types": {}},
        "digests_total_since_heartbeat": {},
        "managed_bytes": 0,
        "spilled_bytes": {"memory": 0, "disk": 0},
        "transfer": {
            "incoming_bytes": 0,
            "incoming_count": 0,
            "incoming_count_total": 0,
            "outgoing_bytes": 0,
            "outgoing_count": 0,
            "outgoing_count_total": 0,
        },
        "event_loop_interval": 0.02,
        "cpu": 1.0,
        "memory": 2**26,
        "time": time.time(),
        "host_net_io": {"read_bps": 0.0, "write_bps": 0.0},
        "host_disk_io": {"read_bps": 0.0, "write_bps": 0.0},
        "num_fds": 10,
    }


async def serve(scheduler: str, count: int, first: int = 0) -> None:
    """Run workers until the scheduler has closed them all.

    Parameters
    ----------
    scheduler
        The address of the scheduler.
    count
        How many.
    first
        The number of the first one. Processes on one scheduler need numbers apart.
    """
    registered = asyncio.Semaphore(_STARTING_WORKERS)
    workers = [
        SimulatedWorker(scheduler, f"simulated-{n}", f"tcp://127.0.0.1:{_FIRST_PORT + n}")
        for n in range(first, first + count)
    ]
    await asyncio.gather(*(worker.run(registered) for worker in workers))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulated_workers")
    parser.add_argument("scheduler", help="the address of the scheduler")
    parser.add_argument("--workers", type=int, default=250, help="how many; default: 250")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    options = parser.parse_args()
    asyncio.run(serve(options.scheduler, options.workers, options.first))


if __name__ == "__main__":
    main()
