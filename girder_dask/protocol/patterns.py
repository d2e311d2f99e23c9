"""Patterns of strings in messages, and what error messages say instead of the patterns."""

from __future__ import annotations

import msgspec

__all__ = ["ISOLATION", "JOB_ID", "TASK_NAME", "explain_mismatch"]

#: The names of tasks, which logs, Dask keys and pages show.
TASK_NAME = r"^[\w.-]+:([\w.]|<locals>|<lambda>)+\Z"
#: The ids of job documents.
JOB_ID = r"^[0-9a-fA-F]{24}\Z"
#: The values of the option ``isolation``. The error of a Literal would not name them.
ISOLATION = r"^(thread|process)\Z"

_MEANINGS = {
    TASK_NAME: "the name of a task, such as `package.module:function`",
    JOB_ID: "the id of a job, 24 hexadecimal digits",
    ISOLATION: "`thread` or `process`",
}


def explain_mismatch(error: msgspec.ValidationError) -> str:
    """Return the message of an error, which names the field, without regular expressions.

    >>> from typing import Annotated
    >>> from msgspec import Meta
    >>> try:
    ...     msgspec.convert("5", Annotated[str, Meta(pattern=JOB_ID)])
    ... except msgspec.ValidationError as e:
    ...     print(explain_mismatch(e))
    Expected the id of a job, 24 hexadecimal digits
    """
    text = str(error)
    for pattern, meaning in _MEANINGS.items():
        text = text.replace(f"`str` matching regex {pattern!r}", meaning)
    return text
