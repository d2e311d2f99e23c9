"""What a task does with the jobs that it starts, and with its own state."""

from girder_dask import app, girder_job
from ported_tasks.tasks import add


@girder_job(title="Follows", type="family")
@app.task(bind=True)
def follows(self):
    """Start a job, look at it by its id, and ask for the state of its own."""
    child = add.delay(3, 4, girder_job_title="Followed")
    again = self.AsyncResult(child.task_id)
    print("the child", again.get(timeout=60), again.ready(), again.successful(), again.failed())
    self.job_manager.refreshStatus()
    print("the state", int(self.job_manager.status))
