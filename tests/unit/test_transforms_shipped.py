"""The unit tests that girder_worker_utils ships for its transforms, run on ours."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Each module of tests, how many tests it has, and what is imported in place of what.
SHIPPED = {
    "girder_io_test": 13,
    "contrib.girder_io_test": 3,
    "transform_test": 10,
}
IMPORTS = {
    r"from girder_worker_utils\.transforms(\.contrib)? import girder_io": (
        "from girder_dask import transforms as girder_io"
    ),
    r"from girder_worker_utils\.transform import Transform": (
        "from girder_dask.transforms import Transform"
    ),
}
# Calls are noted, and done too unless the tests still need what is removed: our transforms look
# whether it is gone.
NOTED = (
    "mock.patch('shutil.rmtree', side_effect=lambda path, rmtree=__import__('shutil').rmtree: "
    "str(path) == globals().get('DIR_PATH') or rmtree(path))"
)


def adapted(module: str) -> str:
    """Return the source of a test module with our names imported in place of its own."""
    spec = importlib.util.find_spec(f"girder_worker_utils.tests.{module}")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    for theirs, ours in IMPORTS.items():
        source = re.sub(theirs, ours, source)
    source = source.replace("mock.patch('shutil.rmtree')", NOTED)
    assert "girder_worker_utils" not in source
    return source


@pytest.mark.parametrize("module", SHIPPED)
def test_they_pass(module: str, tmp_path: Path) -> None:
    (tmp_path / "test_shipped.py").write_text(adapted(module))
    # The directory that they upload, which the package leaves out.
    data = tmp_path / "fake_dir" / "subdir"
    data.mkdir(parents=True)
    for path in (data.parent / "file1.txt", data.parent / "file2.txt", data / "file3.txt"):
        path.write_text("data\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:girder_dask", "test_shipped.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert ended.returncode == 0, ended.stdout
    assert f"{SHIPPED[module]} passed" in ended.stdout
    assert not re.search("skipped|deselected|xfailed", ended.stdout)
