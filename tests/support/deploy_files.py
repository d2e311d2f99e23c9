"""The folder ``deploy/``: what ``girder-dask init`` writes for the hosts of an example.

``python -m tests.support.deploy_files`` writes it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from girder_dask.cli.site.files import Site

__all__ = ["DEPLOY", "EXAMPLE"]

DEPLOY = Path(__file__).parents[2] / "deploy"
EXAMPLE = Site("girder.example.org", "dask.example.org", ("node1.example.org",), tls=True)


def main() -> None:
    """Write the folder. It holds no certificates."""
    shutil.rmtree(DEPLOY)
    for file in EXAMPLE.files():
        path = DEPLOY / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
        path.chmod(file.mode)


if __name__ == "__main__":
    main()
