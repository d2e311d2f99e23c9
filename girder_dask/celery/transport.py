"""Transport of kombu for ``dask://``: a message in a queue becomes a job."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from queue import Empty
from typing import Any, ClassVar

from kombu import Producer
from kombu.transport import memory, virtual

from girder_dask.celery import publishing
from girder_dask.celery.run_state import current_run
from girder_dask.client.backend import get_backend

__all__ = ["Transport"]


class Channel(memory.Channel):
    """Channel that gives messages of tasks to the backend of the process or the run."""

    queues: ClassVar[dict[str, Any]] = {}

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        if "task" in (message.get("headers") or {}):
            publishing.publish(queue, message)
        else:  # a reply of a worker
            super()._put(queue, message, **options)

    def _put_fanout(
        self, exchange: str, message: dict[str, Any], routing_key: Any = None, **options: Any
    ) -> None:
        if not exchange.endswith(".pidbox"):
            super()._put_fanout(exchange, message, routing_key, **options)
            return
        command = _body(message)
        method, run = str(command["method"]), current_run()
        if method == "revoked" and run is not None:
            self._reply(command, run.revoked())
        else:
            arguments = command.get("arguments") or {}
            self._reply(command, get_backend().celery_messages.control(method, arguments))

    def _reply(self, command: Mapping[str, Any], answers: Mapping[str, Any]) -> None:
        reply: Any = command.get("reply_to")
        if not reply:
            return
        wanted = command.get("destination")
        producer = Producer(self, auto_declare=False)
        for host, answer in answers.items():
            if not wanted or host in wanted:
                producer.publish(
                    {host: answer},
                    exchange=reply["exchange"],
                    routing_key=reply["routing_key"],
                    serializer="json",
                    headers={"ticket": command["ticket"], "clock": 0},
                )


def _body(message: Mapping[str, Any]) -> Any:
    body = message["body"]
    if message["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body)
    command = json.loads(body)
    return command[0] if isinstance(command, list) else command


class Transport(memory.Transport):
    """Transport whose messages never wait in a queue."""

    Channel = Channel
    global_state = virtual.BrokerState()
    driver_type = driver_name = "dask"

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self.state = self.global_state

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:  # noqa: ARG002
        """Deliver a waiting reply.

        All replies to a command are there when it has been sent, so nothing is waited for.
        """
        try:
            self.cycle.get(self._deliver, timeout=timeout)
        except Empty:
            raise TimeoutError("No reply is waiting") from None
