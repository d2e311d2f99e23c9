"""Descriptions of the arguments of tasks, from which a page can build a form.

The decorators and types are those of ``girder_worker.utils`` and ``girder_worker_utils``: only the
import changes, and functions with their decorators work as well.

Examples
--------
>>> from girder_dask import task
>>> from girder_dask.describing import argument, types
>>> @task
... @argument('n', types.Integer, min=1, help='How many')
... def count_to(n):
...     '''Count.'''
...     return list(range(n))
>>> describe_function(count_to)['inputs']
[{'id': 'n', 'name': 'n', 'description': 'How many', 'type': 'integer', 'min': 1, 'step': 1}]
>>> call_item_task(count_to, {'n': {'data': '3'}})
[0, 1, 2]
"""

from __future__ import annotations

from girder_dask.describing import types
from girder_dask.describing.arguments import argument
from girder_dask.describing.descriptions import (
    MissingDescriptionException,
    describe,
    describe_function,
    get_description_attribute,
)
from girder_dask.describing.inputs import (
    MissingInputException,
    call_item_task,
    get_input_data,
    parse_inputs,
)
from girder_dask.utils.public_names import pin

__all__ = [
    "MissingDescriptionException",
    "MissingInputException",
    "argument",
    "call_item_task",
    "describe",
    "describe_function",
    "get_description_attribute",
    "get_input_data",
    "parse_inputs",
    "types",
]

pin(globals())
