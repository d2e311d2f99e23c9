"""A Girder plugin whose routes start the tasks of my_worker_tasks."""

from __future__ import annotations

from typing import Any

from girder.plugin import GirderPlugin, getPlugin


class MyPlugin(GirderPlugin):
    """Adds the routes under ``my_plugin``."""

    DISPLAY_NAME = "My plugin"

    def load(self, info: dict[str, Any]) -> None:
        from girder_my_plugin.rest import MyRoutes

        getPlugin("dask").load(info)
        info["apiRoot"].my_plugin = MyRoutes()
