"""The files of a site, from templates: settings, Dask's configuration, units and accounts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from girder_dask.errors import GirderDaskError

__all__ = ["Site", "SiteFile"]

_TEMPLATES = Path(__file__).with_name("templates")
_PLACEHOLDER = re.compile(r"@([a-z_]+)@")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PATH = re.compile(r"/[\w./+-]*", re.ASCII)
_ANY = "0.0.0.0"  # noqa: S104 - with TLS, or in a closed network
_LOOPBACK = "127.0.0.1"
# The folder of Prometheus and Grafana, which is no role of Dask and has no certificate.
_MONITORING = "monitoring"
# The role of Dask whose certificate a process uses to listen and to connect.
_DASK_ROLES = {
    "girder": ("client",),
    "scheduler": ("scheduler", "client"),
    "worker": ("worker", "client"),
    "client": ("client",),
}


@dataclass(frozen=True)
class SiteFile:
    """A file of a site: its path below the directory, its text and its mode."""

    path: PurePosixPath
    text: str
    mode: int


@dataclass(frozen=True)
class Site:
    """What a site's files are filled in with.

    Parameters
    ----------
    girder, scheduler
        The hosts of Girder and of the scheduler.
    workers
        The hosts of the workers, one or more.
    tls
        Whether Dask's processes use TLS.
    girder_url
        Girder's address for the other hosts, by default http at its host and port.
    prefix
        Where the folders of the roles are on the hosts.
    state
        Where the processes keep their data.
    programs
        The directory of the programs ``dask`` and ``girder``.
    girder_port, scheduler_port, dashboard_port
        The ports.

    Examples
    --------
    >>> site = Site("girder.example.org", "dask.example.org", ("node1.example.org",), tls=True)
    >>> site.values["scheduler"]
    'tls://dask.example.org:8786'
    """

    girder: str
    scheduler: str
    workers: tuple[str, ...]
    tls: bool
    girder_url: str | None = None
    prefix: str = "/etc/girder_dask"
    state: str = "/var/lib/girder_dask"
    programs: str = "/opt/girder_dask/bin"
    girder_port: int = 8080
    scheduler_port: int = 8786
    dashboard_port: int = 8787

    def __post_init__(self) -> None:
        for host in (self.girder, self.scheduler, *self.workers):
            if not _HOST.fullmatch(host):
                raise GirderDaskError(f"{host!r} is not the name or the IPv4 address of a host.")
        for path in (self.prefix, self.state, self.programs):
            if not _PATH.fullmatch(path):
                raise GirderDaskError(
                    f"{path!r} is not an absolute path of letters, digits and ./_+- alone, as "
                    "shells and systemd need it."
                )
        if self.girder_url is not None and not _is_url(self.girder_url):
            raise GirderDaskError(
                f"{self.girder_url!r} is not the address of a Girder. It looks like "
                "https://girder.example.org."
            )

    @property
    def values(self) -> dict[str, str]:
        """The values of the placeholders, but those of one worker's host."""
        protocol = "tls" if self.tls else "tcp"
        url = self.girder_url or f"http://{self.girder}:{self.girder_port}"
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        values = {
            "girder_host": self.girder,
            "girder_bind": _bind(self.girder),
            "girder_port": str(self.girder_port),
            "scheduler_host": self.scheduler,
            "scheduler_bind": _bind(self.scheduler),
            "scheduler_port": str(self.scheduler_port),
            "dashboard_port": str(self.dashboard_port),
            "protocol": protocol,
            "scheduler": f"{protocol}://{self.scheduler}:{self.scheduler_port}",
            "api_url": url.rstrip("/") + "/api/v1",
            "girder_scheme": parts.scheme,
            "girder_target": f"{parts.hostname}:{port}",
            "metrics_path": parts.path.rstrip("/") + "/api/v1/dask/metrics",
            "prefix": self.prefix,
            "state": self.state,
            "programs": self.programs,
            "environment": str(PurePosixPath(self.programs).parent),
            "url_root": _url_root(url),
            "insecure": "" if self.tls or is_loopback(self.scheduler) else _INSECURE,
        }
        for role in _DASK_ROLES:
            values[f"tls_{role}"] = self._tls(role)
            values[f"state_{role}"] = self._state_lines(role)
        return values

    def folders(self) -> Iterator[tuple[str, str, str]]:
        """Yield the role, the host and the folder of each."""
        yield "girder", self.girder, "girder"
        yield "scheduler", self.scheduler, "scheduler"
        for host in self.workers:
            yield "worker", host, "worker" if len(self.workers) == 1 else f"worker-{host}"
        yield "client", "", "client"

    def files(self) -> Iterator[SiteFile]:
        """Yield all files but certificates."""
        readme = (_TEMPLATES / "README.md").read_text(encoding="utf-8")
        yield SiteFile(PurePosixPath("README.md"), self._fill(readme, {}), 0o644)
        for role, host, folder in self.folders():
            bind = _LOOPBACK if is_loopback(self.scheduler) else ""
            own = {"worker_host": host, "worker_bind": bind}
            yield from self._folder(role, folder, own)
        yield from self._folder(_MONITORING, _MONITORING, {})

    def _folder(self, templates: str, folder: str, own: dict[str, str]) -> Iterator[SiteFile]:
        for template in sorted((_TEMPLATES / templates).iterdir()):
            mode = 0o755 if template.name == "start" else 0o644
            if template.name == "girder.env":
                mode = 0o600  # it has the password of the database
            text = self._fill(template.read_text(encoding="utf-8"), own)
            yield SiteFile(PurePosixPath(folder, template.name), text, mode)

    def _fill(self, text: str, more: dict[str, str]) -> str:
        values = {**self.values, **more}
        # A placeholder without a value leaves no empty line behind.
        text = re.sub(
            r"^@([a-z_]+)@\n",
            lambda found: f"{values[found[1]]}\n" if values[found[1]] else "",
            text,
            flags=re.MULTILINE,
        )
        return _PLACEHOLDER.sub(lambda found: values[found[1]], text)

    def _tls(self, role: str) -> str:
        """Return the section ``distributed:`` of the Dask configuration of a role, if any."""
        if not self.tls:
            return ""
        folder = f"{self.prefix}/{role}"
        pair = f"{{cert: {folder}/{role}.pem, key: {folder}/{role}.key}}"
        lines = [
            "distributed:",
            "  comm:",
            "    require-encryption: true",
            "    tls:",
            f"      ca-file: {folder}/ca.pem",
            *(f"      {dask_role}: {pair}" for dask_role in _DASK_ROLES[role]),
        ]
        return "\n".join(lines)

    def _state_lines(self, role: str) -> str:
        """Return the lines of a unit that give it its directory of data."""
        below = self.state.removeprefix("/var/lib/")
        if below == self.state:
            return f"ReadWritePaths={self.state}/{role}"
        return f"StateDirectory={below}/{role}\nStateDirectoryMode=0700"


_INSECURE = """\
  security:
    # Without TLS, whoever reaches the scheduler's port can run code there: the network of its
    # host and of the workers must be closed.
    allow-insecure: true"""


def _url_root(url: str) -> str:
    """Return the settings of a Girder whose address has a prefix."""
    prefix = urlsplit(url).path.rstrip("/")
    if not prefix:
        return ""
    return "\n".join(
        (
            "# The prefix, which the proxy in front of Girder removes, and the whole address.",
            f"GIRDER_URL_ROOT={prefix}",
            f"GIRDER_SETTING_CORE_SERVER_ROOT={url.rstrip('/')}",
        )
    )


def is_loopback(host: str) -> bool:
    """Return True if a host is this machine, as only it sees itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str) -> str:
    return _LOOPBACK if is_loopback(host) else _ANY


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in {"http", "https"}
            and bool(_HOST.fullmatch(parts.hostname or ""))
            and parts.port != 0
            and re.fullmatch(r"[A-Za-z0-9.:/_-]+", url) is not None
        )
    except ValueError:
        return False
