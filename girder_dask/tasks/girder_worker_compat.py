"""Decorators of girder_worker, on top of ``@task``.

Change ``from girder_worker.app import app`` and ``from girder_worker.utils import
girder_job`` to ``from girder_dask import app, girder_job``; the decorators stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from girder_dask.jobs import HANDLER
from girder_dask.tasks.callables import checked
from girder_dask.tasks.options import TaskSettings
from girder_dask.tasks.task import Task

__all__ = ["App", "app", "girder_job"]

_CELERY_HANDLERS = {"celery_handler", "worker_handler"}


class App:
    """Replacement of girder_worker's Celery application."""

    def task(
        self, function: Callable[..., Any] | None = None, *, bind: bool = False, **options: Any
    ) -> Any:
        """Turn a function into a task. Options of Celery that mean nothing here are ignored.

        Examples
        --------
        >>> from girder_dask import app, girder_job
        >>> @girder_job(title='Double')
        ... @app.task(bind=True)
        ... def double(self, n):
        ...     return 2 * n
        >>> double(4)
        8
        """
        settings = TaskSettings(
            bind=bind,
            # Celery also retries a call that raises only with autoretry_for.
            retries=int(options.get("max_retries", 3) or 0) if options.get("autoretry_for") else 0,
            timeout=options.get("time_limit") or options.get("soft_time_limit"),
        )
        if function is not None:
            return Task(checked(function), settings)
        return lambda f: Task(checked(f), settings)


app = App()


def girder_job(
    title: str | None = None,
    type: str = "dask",  # noqa: A002
    public: bool = False,
    handler: str = HANDLER,
    otherFields: Mapping[str, Any] | None = None,
) -> Callable[[Task[Any, Any]], Task[Any, Any]]:
    """Set the fields of a task's jobs. Celery's handlers are replaced by ours."""

    def decorate(decorated: Task[Any, Any]) -> Task[Any, Any]:
        settings = replace(
            decorated.settings,
            title=title,
            type=type,
            public=public,
            handler=HANDLER if handler in _CELERY_HANDLERS else handler,
            other_fields=otherFields or {},
        )
        return Task(decorated.function, settings)

    return decorate
