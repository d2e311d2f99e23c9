"""Tasks that name no queue stay off the workers of queues, in a real Dask scheduler."""

from __future__ import annotations

from typing import Any

from distributed import Client, Scheduler, Worker
from distributed.diagnostics.plugin import SchedulerPlugin

from girder_dask.scheduler.placement.queue_workers import QueueWorkers


class Hooks(SchedulerPlugin):
    """The hooks that the plugin of the scheduler passes on."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.queue_workers = QueueWorkers(scheduler)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:  # noqa: ARG002
        self.queue_workers.on_joined(worker)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:  # noqa: ARG002
        self.queue_workers.on_left(worker)

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:  # noqa: ARG002
        self.queue_workers.restrict(tasks)


def where() -> str:
    from distributed import get_worker

    return str(get_worker().name)


async def test_tasks_without_a_queue_stay_off_its_workers() -> None:
    async with Scheduler(port=0, dashboard_address=":0") as scheduler:
        scheduler.add_plugin(Hooks(scheduler))
        address = scheduler.address
        async with (
            Worker(address, name="local", nthreads=4, resources={"queue:local": 4}),
            Worker(address, name="general", nthreads=1),
            Client(address, asynchronous=True) as client,
        ):
            plain = client.map(lambda _: where(), range(12), pure=False)
            asking = client.submit(where, resources={"queue:local": 1}, pure=False)
            assert set(await client.gather(plain)) == {"general"}
            assert await asking == "local"


async def test_tasks_that_wait_when_such_a_worker_joins_stay_off_it() -> None:
    async with Scheduler(port=0, dashboard_address=":0") as scheduler:
        scheduler.add_plugin(Hooks(scheduler))
        address = scheduler.address
        async with Client(address, asynchronous=True) as client:
            plain = client.map(lambda _: where(), range(12), pure=False)
            async with Worker(address, name="local", nthreads=4, resources={"queue:local": 4}):
                asking = client.submit(where, resources={"queue:local": 1}, pure=False)
                assert await asking == "local"
                async with Worker(address, name="general", nthreads=1):
                    assert set(await client.gather(plain)) == {"general"}


async def test_a_worker_of_a_queue_and_of_the_default_one_takes_all_tasks() -> None:
    async with Scheduler(port=0, dashboard_address=":0") as scheduler:
        scheduler.add_plugin(Hooks(scheduler))
        address, both = scheduler.address, {"queue:gpu": 1, "queue:celery": 1}
        async with (
            Worker(address, name="both", nthreads=1, resources=both),
            Client(address, asynchronous=True) as client,
        ):
            assert await client.submit(where, pure=False) == "both"
