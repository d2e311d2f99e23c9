"""The tasks: one for each thing that tasks do with girder_worker."""

import sys
import time
from pathlib import Path

from girder_dask import app, girder_job
from girder_dask.describing import argument, types
from girder_dask.jobs import JobStatus


@girder_job(title="Add", type="arithmetic")
@app.task
def add(a, b):
    """Add two numbers, or texts."""
    print(f"{a} + {b} = {a + b}")
    return a + b


@app.task
def plain():
    """Say something, as a task without a job's fields."""
    print("to the one")
    print("to the other", file=sys.stderr)


@girder_job(title="Steps", type="progress", public=True, otherFields={"ported": {"n": 1}})
@app.task(bind=True)
def steps(self, n):
    """Go in steps, and tell how far it is."""
    for i in range(1, n + 1):
        self.job_manager.write(f"step {i} of {n}\n")
        self.job_manager.updateProgress(total=n, current=i, message=f"step {i}", forceFlush=True)


@girder_job(title="States", type="progress")
@app.task(bind=True)
def states(self):
    """Go through states of its own."""
    self.job_manager.updateStatus(JobStatus.CONVERTING_OUTPUT)
    self.job_manager.write("converting\n", forceFlush=True)
    self.job_manager.updateStatus(JobStatus.PUSHING_OUTPUT)


@girder_job(title="Surroundings", type="surroundings")
@app.task(bind=True)
def surroundings(self):
    """Look at what a bound task has."""
    print("release" in self.girder_client.get("system/version"))
    print(bool(self.request.id), self.request.retries, self.canceled)


@girder_job(title="Size", type="files")
@app.task
def file_size(path):
    """Say how large a file is."""
    print(f"{Path(path).stat().st_size} bytes")


@girder_job(title="Contents", type="files")
@app.task
def item_contents(path):
    """Say what is in a directory."""
    for file in sorted(Path(path).iterdir()):
        print(f"{file.name}: {file.read_text()}")


@girder_job(title="Total", type="files")
@app.task
def total(paths, named=None, factor=1):
    """Add the sizes of files that are nested in arguments."""
    sizes = [Path(path).stat().st_size for path in paths]
    sizes += [Path(path).stat().st_size for pair in (named or {}).values() for path in pair]
    print(sizes, factor * sum(sizes))


@girder_job(title="Measure", type="files")
@app.task
def measure(path):
    """Return what becomes metadata."""
    text = Path(path).read_text()
    return {"characters": len(text), "words": text.split()}


@girder_job(title="Report", type="files")
@app.task
def report(directory, name):
    """Write a file."""
    path = Path(directory, name)
    path.write_text(f"the report {name}\n")
    return str(path)


@girder_job(title="Tree", type="files")
@app.task
def tree(directory):
    """Write a directory with a directory in it."""
    Path(directory, "inner").mkdir()
    for name in ("a.txt", "inner/b.txt"):
        Path(directory, name).write_text(name)
    return directory


@girder_job(title="Both", type="files")
@app.task
def both(directory):
    """Return a file and what becomes metadata."""
    return report(directory, "both.txt"), {"both": True}


@girder_job(title="Echo", type="echo")
@app.task
def echo(text):
    """Return what it gets."""
    print(text)
    return text


@girder_job(title="Fails", type="endings")
@app.task
def fails(message):
    """Raise."""
    print("about to fail")
    raise ValueError(message)


@girder_job(title="Waits", type="endings")
@app.task(bind=True)
def waits(self):
    """Wait until the job is canceled."""
    self.job_manager.write("waiting\n", forceFlush=True)
    while not self.canceled:
        time.sleep(0.05)
    self.job_manager.write("stopped\n")


@girder_job(title="Parent", type="family")
@app.task(bind=True)
def parent(self, n):
    """Start a job from within a job."""
    print("starting a child")
    add.delay(n, 1, girder_job_title="Child")


@girder_job(title="Scale", type="described")
@app.task
@argument("text", types.String, help="What is repeated")
@argument("times", types.Integer, min=1, max=9)
@argument("unit", types.StringChoice, choices=["mm", "px"])
def scale(text, times=2, unit="px"):
    """Repeat a text."""
    print(text * int(times) + unit)


@girder_job(title="Describes", type="described")
@app.task(bind=True)
@argument("n", types.Integer)
def describes(self, n=1):
    """Look at its own description."""
    described = self.describe()
    print(described["name"], described["description"], described["inputs"][0]["type"])
