"""Messages that this process publishes: the fields of their jobs, and what does not travel."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, signature
from girder_client import GirderClient
from girder_worker.app import app
from girder_worker.utils.transforms.girder_io import GirderFileId, GirderUploadToItem
from their_tasks.tasks import Scale, add, fibonacci, scaled

from girder_dask.celery import message_body, publishing, serializer
from girder_dask.celery.following_calls import call_text, following_calls
from girder_dask.client.backend import set_backend
from girder_dask.protocol.celery_message import CeleryJob, CeleryMessage


class Messages:
    """The messages that this process has published."""

    def __init__(self) -> None:
        self.sent: list[tuple[CeleryMessage, CeleryJob | None]] = []
        self.celery_messages = self

    def send(self, message: CeleryMessage, job: CeleryJob | None, _call: str) -> None:
        self.sent.append((message, job))


@pytest.fixture
def messages() -> Iterator[Messages]:
    publishing.install(app)
    messages = Messages()
    set_backend(messages)  # type: ignore[arg-type]
    yield messages
    set_backend(None)


def client() -> GirderClient:
    client = GirderClient(apiUrl="http://evil.example/api/v1")
    client.token = "secret-token"
    return client


def test_the_fields_of_a_job_are_beside_the_message(messages: Messages) -> None:
    user: Any = {"_id": "5"}
    fibonacci.delay(7, girder_user=user, girder_job_title="Seven", girder_client_token="given")
    ((message, job),) = messages.sent
    assert job == CeleryJob(
        title="Seven",
        type="numbers",
        public=True,
        other_fields={"meta": {"of": "tests"}},
        args=[7],
        user=user,
        token="given",
    )
    assert message_body.arguments(message) == [[7], {}]
    assert "given" not in str(message.headers)


def test_clients_of_transforms_travel_without_token_and_address(messages: Messages) -> None:
    add.delay(
        GirderFileId("5", gc=client()),
        GirderFileId("6", gc=client()),
        girder_result_hooks=[GirderUploadToItem("7", gc=client())],
    )
    ((message, job),) = messages.sent
    assert job is not None
    assert job.args == ["GirderFileId('5')", "GirderFileId('6')"]
    text = base64.b64decode(message.body).decode() + str(message.headers)
    assert "secret-token" not in text
    assert "evil.example" not in text
    assert publishing.take_spent_tokens() == {"secret-token"}
    assert publishing.take_spent_tokens() == set()


def test_texts_of_the_arguments_do_not_travel(messages: Messages) -> None:
    add.delay("secret-token", 1)
    ((message, _),) = messages.sent
    assert "secret-token" not in str(message.headers)


def test_calls_that_follow_are_data(messages: Messages) -> None:
    chain(add.s(1, 2), scaled.s(Scale(7))).apply_async()
    ((message, _),) = messages.sent
    body = message_body.load(message)
    (call,) = following_calls(message.task, body)
    assert call.task == "their_tasks.tasks.scaled"
    found = message_body.objects(call.args)
    assert [json.loads(each)["py/object"] for each in found] == ["their_tasks.tasks.Scale"]


def test_queue_and_time_are_those_of_the_call(messages: Messages) -> None:
    add.apply_async((1, 2), queue="gpu", countdown=60, priority=3)
    ((message, _),) = messages.sent
    assert (message.queue, message.properties["priority"]) == ("gpu", 3)
    assert message.headers["eta"]


def test_a_task_without_a_job_has_no_fields(messages: Messages) -> None:
    add.delay(1, 2, girder_job_disable=True)
    ((message, job),) = messages.sent
    assert job is None
    assert "girder_job_disable" not in message.headers


def test_objects_that_calls_share_arrive_in_each(messages: Messages) -> None:
    shared = {"list": [1, 2]}
    chain(add.s(1, 2), add.si(shared, [3]), add.si(shared, shared)).apply_async()
    ((message, _),) = messages.sent
    _, _, embed = serializer.decode(base64.b64decode(message.body))
    calls = [list(call["args"]) for call in reversed(embed["chain"])]
    assert calls == [[shared, [3]], [shared, shared]]
    assert calls[0][0] is calls[1][0] is calls[1][1]


def test_calls_that_share_an_object_are_sent_as_they_were_stored(messages: Messages) -> None:
    """A worker opens a message, and sends the calls in it one by one."""
    shared = Scale({"list": [1, 2]})
    given = ([shared, shared], {"of": shared})
    chain(add.s(1, 2), scaled.si(*given), scaled.si(shared, girder_job_title="t")).apply_async()
    ((first, _),) = messages.sent
    stored = {
        call_text(call.task, call.args, call.kwargs)
        for call in following_calls(first.task, message_body.load(first))
    }
    _, _, embed = serializer.decode(base64.b64decode(first.body))
    (last, middle) = embed["chain"]
    signature(middle).apply_async(chain=[last])
    (_, (second, _)) = messages.sent
    assert call_text(second.task, *message_body.arguments(second)) in stored
    (call,) = following_calls(second.task, message_body.load(second))
    assert call_text(call.task, call.args, call.kwargs) in stored
