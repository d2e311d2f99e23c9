"""What the entry point of the group ``girder_worker_plugins`` names."""

from girder_dask.entrypoint import GirderWorkerPluginABC


class PortedTasks(GirderWorkerPluginABC):
    """Names the modules of tasks."""

    def __init__(self, app):
        self.app = app

    def task_imports(self):
        return ["ported_tasks.tasks"]
