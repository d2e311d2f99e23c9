"""girder_worker's serializer, with labels in place of jsonpickle's numbers of shared values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonpickle.pickler
import jsonpickle.unpickler
from kombu.serialization import register

from girder_dask.celery import shared_values
from girder_dask.celery.shared_values import SAME, SHARED, VALUE

__all__ = ["NAME", "decode", "encode", "flatten", "install", "restore", "restore_body"]

#: The name by which kombu knows it. girder_worker's tasks are sent with this one.
NAME = "girder_io"


# A client of Girder as it is written. Each is opened as the one client of the job, which makes no
# shared value of several.
_CLIENT = {"py/object": "girder_client.GirderClient"}


def install() -> None:
    """Have kombu write and read girder_worker's messages with this serializer."""
    register(NAME, encode, decode, content_type="application/json", content_encoding="utf-8")


def encode(value: Any) -> str:
    """Return a value as text."""
    pickler = _Pickler()
    text: str = pickler.backend.encode(pickler.flatten_with_labels(value))
    return text


def decode(text: str | bytes) -> Any:
    """Return a value from its text. This can run code, as that of jsonpickle can."""
    return restore(shared_values.loads(text))


def flatten(value: Any) -> Any:
    """Return a value as JSON."""
    return _Pickler().flatten_with_labels(value)


def restore(value: Any) -> Any:
    """Return a value from JSON whose references are resolved."""
    return _Unpickler(shared_values.shared_in(value)).restore(value)


def restore_body(body: Any, *, in_parts: bool = True) -> Any:
    """Return the arguments, the keyword arguments and what is embedded in a message from JSON.

    Parameters
    ----------
    in_parts
        Whether the calls that follow get objects of their own: a task may change those that it
        gets, as ``docker_run`` does with its volumes. Numbers of jsonpickle lead across the parts.
    """
    if not in_parts:
        return restore(body)
    args, kwargs, embed = body["py/tuple"] if isinstance(body, dict) else body
    return (*restore([args, kwargs]), restore(embed))


class _Pickler(jsonpickle.pickler.Pickler):
    """Pickler of jsonpickle that labels what it refers to, where it can.

    What contains itself keeps the numbers of jsonpickle.
    """

    def __init__(self) -> None:
        super().__init__(keys=True)
        # What objects were written as, by their ids. jsonpickle keeps the objects meanwhile.
        self._written: dict[int, Any] = {}
        # The references to something that is written, by its id.
        self._references: dict[int, list[dict[str, Any]]] = {}

    def flatten_with_labels(self, value: Any) -> Any:
        """Return a value as JSON."""
        flat = self.flatten(value)
        return self._label(flat) if self._references else flat

    def _flatten_obj(self, obj: Any) -> Any:
        written = super()._flatten_obj(obj)
        self._written.setdefault(id(obj), written)
        return written

    def _getref(self, obj: Any) -> Any:
        written = self._written.get(id(obj))
        if written == _CLIENT:
            return dict(_CLIENT)
        reference = super()._getref(obj)
        if isinstance(written, (dict, list)):
            self._references.setdefault(id(written), []).append(reference)
        return reference

    def _label(self, found: Any) -> Any:
        """Put labels into JSON that this has written."""
        if isinstance(found, list):
            found[:] = [self._label(each) for each in found]
        elif isinstance(found, dict):
            for key, each in found.items():
                found[key] = self._label(each)
        references = self._references.pop(id(found), None)
        if references is None:
            return found
        label = self._labels = self._labels + 1
        for reference in references:
            reference.clear()
            reference[SAME] = label
        return {SHARED: label, VALUE: found}

    _labels = 0


class _Unpickler(jsonpickle.unpickler.Unpickler):
    """Unpickler of jsonpickle that makes one object of what is shared.

    Parameters
    ----------
    shared
        The objects of the JSON that are in more than one place, by their ids.
    """

    def __init__(self, shared: Mapping[int, Any]) -> None:
        super().__init__(keys=True)
        self._shared = shared
        self._restored: dict[int, Any] = {}

    def _restore(self, obj: Any, *args: Any, **options: Any) -> Any:
        if id(obj) not in self._shared:
            return super()._restore(obj, *args, **options)
        if id(obj) not in self._restored:
            self._restored[id(obj)] = super()._restore(obj, *args, **options)
        return self._restored[id(obj)]
