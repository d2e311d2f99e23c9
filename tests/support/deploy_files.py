"""The folder ``deploy/``: what ``girder-dask init`` writes for the hosts of an example.

``python -m tests.support.deploy_files`` writes it. Beside it are folders for containers and batch
systems, which are written by hand.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from girder_dask.cli.site.files import Site

__all__ = ["BY_HAND", "DEPLOY", "EXAMPLE", "written_by_init"]

DEPLOY = Path(__file__).parents[2] / "deploy"
#: The folders that ``init`` does not write.
BY_HAND = ("compose", "images", "kubernetes", "slurm")
EXAMPLE = Site("girder.example.org", "dask.example.org", ("node1.example.org",), tls=True)


def written_by_init() -> Iterator[Path]:
    """Yield the files that are there and that ``init`` should write."""
    for path in sorted(DEPLOY.rglob("*")):
        if path.is_file() and path.relative_to(DEPLOY).parts[0] not in BY_HAND:
            yield path


def main() -> None:
    """Write the folder. It holds no certificates."""
    for path in DEPLOY.iterdir():
        if path.is_dir() and path.name not in BY_HAND:
            shutil.rmtree(path)
    for file in EXAMPLE.files():
        path = DEPLOY / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
        path.chmod(file.mode)


if __name__ == "__main__":
    main()
