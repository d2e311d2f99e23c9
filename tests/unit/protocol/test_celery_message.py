"""Messages of Celery as bytes, and the names of their tasks."""

from __future__ import annotations

import pytest

from girder_dask.errors import ArgumentError, PayloadTooLargeError
from girder_dask.protocol.celery_message import CeleryJob, CeleryMessage
from girder_dask.protocol.payload import is_plain, open_call, pack_message


def test_pack_message_keeps_the_message() -> None:
    message = CeleryMessage(
        "5f", "pkg.tasks.add", "gpu", "W10=", "base64", headers={"retries": 2, "eta": None}
    )
    payload = pack_message(message)
    assert open_call(payload, unpickle=False).message == message
    assert is_plain(payload)


def test_pack_message_refuses_headers_that_are_not_data() -> None:
    with pytest.raises(ArgumentError, match=r"A header of the message for pkg\.add cannot be sent"):
        pack_message(CeleryMessage("1", "pkg.add", "celery", "", headers={"x": object()}))


def test_pack_message_is_bounded() -> None:
    with pytest.raises(PayloadTooLargeError, match="pkg:add"):
        pack_message(CeleryMessage("1", "pkg.add", "celery", "x" * 1000), limit=1000)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("pkg.tasks.add", "pkg.tasks:add"),
        ("celery.chord_unlock", "celery:chord_unlock"),
        ("add", "celery:add"),
        ("a name/with: signs", "celery:a_name_with__signs"),
        ("pkg.", "pkg:task"),
    ],
)
def test_task_name_is_one_of_this_package(task: str, name: str) -> None:
    assert CeleryMessage("1", task, "celery", "").task_name == name


def test_job_fields_travel_without_user_and_token() -> None:
    job = CeleryJob(title="Add", user={"login": "x"}, token="secret")
    assert job.to_wire() == {"title": "Add", "version": 1}
