"""What a type checker makes of tasks. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from typing_extensions import assert_type

from girder_dask import JobResult, Task, current_job, task
from girder_dask.tasks.running_job import RunningJob


@task
def bare(path: str, *, scale: float = 1.0) -> int:
    return len(path)


@task(title="Count", retries=2, other_fields={"a": 1}, timeout=5)
def with_settings(path: str, n: int = 1) -> list[int]:
    return [n] * len(path)


@task(bind=True, title="Bound")
def bound(self: RunningJob, path: str) -> bool:
    assert_type(self.canceled, bool)
    return bool(path)


@task(bind=False)
def not_bound(n: int) -> None: ...


@task(title="Waits")
async def waits(n: int) -> str:
    return "a" * n


assert_type(bare("a", scale=2.0), int)
awaited: Coroutine[Any, Any, str] = waits(2)
assert_type(waits.delay(2), JobResult)
assert_type(with_settings("a", 2), list[int])
assert_type(bound("a"), bool)
assert_type(bare.delay("a", girder_job_title="One"), JobResult)
assert_type(bare.apply_async(("a",), priority=1), JobResult)
assert_type(current_job(), RunningJob)
assert_type(bare.name, str)

as_task: Task[[int], None] = not_bound


bare(1)  # E: arg-type
bare("a", 2.0)  # E: call-arg
bare()  # E: call-arg
with_settings("a", "b")  # E: arg-type
bound(current_job(), "a")  # E: arg-type,call-arg
word: str = bare("a")  # E: assignment
awaited = waits("a")  # E: arg-type
task(colour="blue")  # E: call-overload
task(retries="two")  # E: call-overload
