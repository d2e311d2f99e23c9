"""The message of Celery that starts a task of girder_worker, and the fields of its job."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from girder_dask.protocol.messages import Message

__all__ = [
    "CHORD_POLL",
    "DEFAULT_QUEUE",
    "FOLLOWING_CALLS",
    "LOCAL_QUEUE",
    "MAX_PRIORITY",
    "QUEUE_RESOURCE_PREFIX",
    "TOKEN_ARGUMENTS",
    "CeleryJob",
    "CeleryMessage",
    "find_tokens",
    "queue_resources",
    "replace_tokens",
]

#: The queue of tasks that name none.
DEFAULT_QUEUE = "celery"

#: The queue of tasks that need Girder's database. Its workers have that.
LOCAL_QUEUE = "local"

#: The highest priority of a message, and the negative of the lowest.
MAX_PRIORITY = 2**31 - 1

#: The task of Celery that polls the members of a chord, and calls its body when all have ended.
CHORD_POLL = "celery.chord_unlock"

#: The prefix of the worker resource that stands for a queue.
QUEUE_RESOURCE_PREFIX = "queue:"

#: Names under which packages pass tokens to their tasks, as slicer_cli_web does with ``token``.
TOKEN_ARGUMENTS = frozenset(
    {"token", "girder_token", "girderToken", "api_token", "apiToken", "girder_client_token"}
)

#: The fields of a request of Celery with the calls that follow it. A body embeds them.
FOLLOWING_CALLS = frozenset({"callbacks", "errbacks", "chain", "chord"})

# The ids of Girder's tokens. What has hexadecimal digits alone is rather a digest.
_TOKEN = re.compile(
    r"(?<![0-9A-Za-z])(?![0-9a-f]{64}(?![0-9A-Za-z]))(?![0-9A-F]{64}(?![0-9A-Za-z]))"
    r"[0-9A-Za-z]{64}(?![0-9A-Za-z])"
)


def queue_resources(queue: str) -> dict[str, float]:
    """Return the resources of a worker that stand for a queue, none for the default one.

    >>> queue_resources("gpu"), queue_resources("celery")
    ({'queue:gpu': 1.0}, {})
    """
    return {} if queue == DEFAULT_QUEUE else {f"{QUEUE_RESOURCE_PREFIX}{queue}": 1.0}


def find_tokens(text: str) -> list[str]:
    """Return what has the form of a token of Girder in a text.

    >>> find_tokens(f"--token={'aB3z' * 16} {'0f' * 32}") == ['aB3z' * 16]
    True
    """
    return _TOKEN.findall(text)


def replace_tokens(text: str, tokens: Collection[str], replacement: str) -> str:
    """Return a text with a replacement for each of some tokens.

    >>> replace_tokens(f"--token={'aB3z' * 16}", {'aB3z' * 16}, "(removed)")
    '--token=(removed)'
    """
    return _TOKEN.sub(lambda at: replacement if at[0] in tokens else at[0], text)


_Line = Annotated[str, Meta(min_length=1, max_length=500)]
_NOT_IN_NAMES = re.compile(r"[^\w.-]")


class CeleryMessage(Message, Struct, frozen=True, omit_defaults=True):
    """A message of Celery, as kombu hands it to its transport.

    Attributes
    ----------
    id, task, queue
        Celery's id of the call, the name of the task, and its queue.
    body
        The arguments and the calls that follow, serialized.
    body_encoding
        ``'base64'`` if the body is encoded so, or None.
    headers
        The headers of protocol 2 of Celery, without tokens and addresses.
    properties
        Properties of the delivery, such as ``priority`` and ``reply_to``.
    """

    id: _Line
    task: _Line
    queue: _Line
    body: str
    body_encoding: str | None = None
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    headers: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task_name(self) -> str:
        """The name of the task as ``package.module:function``.

        >>> CeleryMessage("1", "celery.chord_unlock", "celery", "").task_name
        'celery:chord_unlock'
        """
        module, _, function = self.task.rpartition(".")
        function = _NOT_IN_NAMES.sub("_", function).replace("-", "_")
        return f"{_NOT_IN_NAMES.sub('_', module) or 'celery'}:{function or 'task'}"


class CeleryJob(Message, Struct, frozen=True, omit_defaults=True):
    """The fields of the Girder job of a message. ``user`` does not travel."""

    title: str = ""
    type: str = "celery"
    public: bool = False
    other_fields: Mapping[str, Any] = field(default_factory=dict)
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    user: Any = None
    token: Any = None

    def to_wire(self) -> dict[str, Any]:
        """Return the fields for Girder without the user: Girder takes the owner of the sender."""
        return Message.to_wire(replace(self, user=None, token=None))
