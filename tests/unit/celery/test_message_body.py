"""Messages that jobs send hold data alone."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import Any

import pytest

from girder_dask.celery import message_body
from girder_dask.errors import ArgumentError
from girder_dask.protocol.celery_message import CeleryMessage

IO = "girder_worker.utils.transforms.girder_io"


def message(args: Any, **fields: Any) -> CeleryMessage:
    body = json.dumps([args, {}, {"chain": None}])
    encoded = base64.b64encode(body.encode()).decode()
    return CeleryMessage("1", "tasks.add", "celery", encoded, body_encoding="base64", **fields)


@pytest.mark.parametrize(
    "value",
    [
        [1, 2.5, None, True, "text", {"a": ["b"]}],
        {"py/tuple": [1, {"py/set": [2]}, {"py/b64": "eA=="}, {"py/id": 1}]},
        {"py/object": f"{IO}.GirderFileId", "file_id": "5" * 24, "gc": None},
        {
            "py/object": f"{IO}.GirderItemId",
            "item_id": "5" * 24,
            "gc": {"py/object": "girder_client.GirderClient"},
        },
        {"py/object": "girder_worker.utils.transforms.common.TemporaryDirectory"},
        {"json://1": 1, "json://2.5": 2, "json://null": 3, "json://true": 4},
        {'json://{"py/tuple": [1, {"py/tuple": ["a"]}]}': 1, 'json://"json://1"': 2},
    ],
)
def test_check_accepts_data_and_transforms(value: Any) -> None:
    message_body.check(message([value]))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"py/object": "os.system"}, "an object of 'os.system'"),
        ({"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["id"]}]}, "py/reduce"),
        ({"py/function": "os.system"}, "py/function"),
        ({"py/type": "subprocess.Popen"}, "py/type"),
        ({"py/mod": "antigravity"}, "py/mod"),
        ({"py/repr": "os/os.getcwd()"}, "py/repr"),
        ({"py/iterator": []}, "py/iterator"),
        ({'json://{"py/object": "os.system"}': 1}, "a key that is not plain"),
        ({'json://{"py/id": 1}': 1}, "a key that is not plain"),
        ({'json://{"py/tuple": [1, {"py/object": "x"}]}': 1}, "a key that is not plain"),
        ({'json://{"py/tuple": {"py/object": "x"}}': 1}, "a key that is not plain"),
        ({'json://{"py/tuple": [1], "py/object": "x"}': 1}, "a key that is not plain"),
        ({"json://" + "[" * 900: 1}, "a key that is not plain"),
        ({"json://1 2": 1}, "a key that is not plain"),
        (
            {"py/object": f"{IO}.GirderFileId", "file_path": "/etc/passwd"},
            f"an object of '{IO}.GirderFileId' with file_path",
        ),
        (
            {"py/object": f"{IO}.GirderFileId", "file_id": "/home/worker/x"},
            f"an object of '{IO}.GirderFileId' whose file_id is no id: '/home/worker/x'",
        ),
        (
            {"py/object": f"{IO}.GirderItemId", "item_id": ["5" * 24]},
            f"an object of '{IO}.GirderItemId' whose item_id is no id",
        ),
        (
            {"py/object": f"{IO}.GirderFileId", "py/state": {"file_path": "/etc/x"}},
            f"an object of '{IO}.GirderFileId' with py/state",
        ),
        (
            {"py/object": "girder_client.GirderClient", "urlBase": "http://evil"},
            "an object of 'girder_client.GirderClient' with urlBase",
        ),
        ({"py/object": ["os.system"]}, "an object of ['os.system']"),
    ],
)
def test_check_refuses_what_could_run_code(value: Any, reason: str) -> None:
    with pytest.raises(ArgumentError, match="may run code when it is opened") as error:
        message_body.check(message([[{"deep": value}]]))
    assert f"body[0][0][0]['deep'] has {reason}" in str(error.value)


def test_check_refuses_code_in_headers() -> None:
    hooks = [{"py/object": "os.system"}]
    with pytest.raises(ArgumentError, match=r"headers\['girder_result_hooks'\]\[0\] has"):
        message_body.check(message([], headers={"girder_result_hooks": hooks}))


@pytest.mark.parametrize(
    "sent",
    [
        CeleryMessage(
            "1", "t", "q", "gAQ=", "base64", content_type="application/x-python-serialize"
        ),
        CeleryMessage(
            "1", "t", "q", "!!python/object: os.system", content_type="application/x-yaml"
        ),
        CeleryMessage("1", "t", "q", '{"args": [], "kwargs": {}}'),
        CeleryMessage("1", "t", "q", "no json"),
        CeleryMessage("1", "t", "q", "[" * 100_000),
    ],
)
def test_check_refuses_other_types_and_protocols(sent: CeleryMessage) -> None:
    with pytest.raises(ArgumentError, match="A job may send JSON alone"):
        message_body.check(sent)


def test_check_refuses_a_body_that_is_read_in_two_ways() -> None:
    harmless = base64.b64encode(b"[[1],{},{}]  ").decode()
    assert harmless.endswith("=")  # where a lenient decoder stops
    code = {"py/reduce": [{"py/function": "posix.system"}, {"py/tuple": ["id"]}]}
    body = json.dumps([[harmless, code], {}, {}])
    assert base64.b64decode(body) == b"[[1],{},{}]  "
    for encoding in ("x", "BASE64", ""):
        with pytest.raises(ArgumentError):
            message_body.check(CeleryMessage("1", "t", "q", body, encoding))
    with pytest.raises(ArgumentError, match="py/reduce"):
        message_body.check(CeleryMessage("1", "t", "q", body))


def test_check_returns_the_json_that_it_has_checked() -> None:
    sent = CeleryMessage("1", "t", "q", '[[{"a": 1, "a": 2}], {}, {}]')
    assert message_body.check(sent) == [[{"a": 2}], {}, {}]


def test_check_takes_little_memory_for_many_values_in_deep_places() -> None:
    value: Any = [0] * 20_000
    for _ in range(90):
        value = {"k" * 48: value}
    sent = message([value])
    message_body.check(sent)
    tracemalloc.start()
    message_body.check(sent)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20 * len(sent.body)


def test_check_refuses_deep_nesting() -> None:
    value: Any = []
    for _ in range(200):
        value = [value]
    with pytest.raises(ArgumentError, match="nested deeper than 100 levels"):
        message_body.check(message([value]))


def test_tokens_are_found_by_their_form_alone() -> None:
    token, other, digest = "aZ09" * 16, "bY18" * 16, "ab09" * 16
    words = {"deep": [{"token": "tumor volume"}]}  # no run may take these words from others
    sent = message([digest, words, f"--girderToken={token}", f"x{token}", f"?token={other}&a=1"])
    assert sorted(message_body.tokens(sent)) == [token, other]
    assert message_body.tokens(message([{"girderToken": token}])) == [token]
    many = [f"{n:04}" + "aZ09" * 15 for n in range(5_000)]
    assert len(message_body.tokens(message(many))) == 100
    assert message_body.tokens(CeleryMessage("1", "tasks.add", "celery", "no JSON")) == []


def test_check_refuses_what_is_embedded_besides_calls() -> None:
    body = json.dumps([[], {}, {"chain": None, "girder_result_hooks": []}])
    with pytest.raises(ArgumentError, match=r"body\[2\] has girder_result_hooks"):
        message_body.check(CeleryMessage("1", "tasks.add", "celery", body))


def test_check_refuses_keys_that_are_tags_once_they_are_opened() -> None:
    with pytest.raises(ArgumentError, match="a key that is not plain"):
        message_body.check(message([{'json://"py/reduce"': [1]}]))
