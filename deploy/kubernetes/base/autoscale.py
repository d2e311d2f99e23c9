"""The autoscaler: sets the number of workers to what the scheduler asks for.

The scheduler counts the jobs that wait, by the rules of Dask's adaptive clusters. More workers come
at once, fewer when the scheduler has asked for fewer for some time. A worker that is asked to end
lets its jobs end (``girder.scheduler.leave-grace``).
"""

import json
import os
import ssl
import time
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
INTERVAL_S = float(os.environ.get("INTERVAL_S", "15"))
#: Seconds for which fewer workers must be asked for before their number is reduced.
PATIENCE_S = float(os.environ.get("PATIENCE_S", "300"))
TIMEOUT_S = 10.0


def ask(url: str, body: object = None, *, token: str = "", authority: Path | None = None) -> dict:
    """Return the answer to a GET, or to a PATCH with a body."""
    request = urllib.request.Request(url)  # noqa: S310 - http and https, from this file
    if body is not None:
        request.method = "PATCH"
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/merge-patch+json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    context = ssl.create_default_context(cafile=str(authority)) if authority else None
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:  # noqa: S310
        return dict(json.load(answer))


class Autoscaler:
    """The number of workers, as the scheduler asks for it.

    Parameters
    ----------
    scheduler
        The scheduler's HTTP server.
    scale
        The resource ``scale`` of the workers' Deployment.
    minimum, maximum
        The least and the largest number of workers.
    account
        The directory of the token and of the certificate for Kubernetes.
    """

    def __init__(
        self, scheduler: str, scale: str, minimum: int, maximum: int, account: Path = ACCOUNT
    ) -> None:
        self._scheduler = scheduler
        self._scale = scale
        self._minimum = minimum
        self._maximum = maximum
        self._account = account
        self._lower: list[tuple[float, int]] = []

    def step(self, now: float) -> int:
        """Set the number of workers, and return it. ``now`` is in seconds."""
        wanted = int(ask(f"{self._scheduler}/api/v1/adaptive_target")["workers"])
        wanted = min(max(wanted, self._minimum), self._maximum)
        present = int(self._kubernetes()["spec"].get("replicas", 0))
        number = self._decide(wanted, present, now)
        if number != present:
            self._kubernetes({"spec": {"replicas": number}})
            print(f"{number} workers in place of {present}", flush=True)
        return number

    def _decide(self, wanted: int, present: int, now: float) -> int:
        if wanted >= present:
            self._lower.clear()
            return wanted
        self._lower.append((now, wanted))
        if now - self._lower[0][0] < PATIENCE_S:
            return present
        number = max(each for _, each in self._lower)
        self._lower.clear()
        return number

    def _kubernetes(self, body: object = None) -> dict:
        # Kubernetes replaces the token from time to time.
        token = (self._account / "token").read_text()
        authority = self._account / "ca.crt"
        trusted = authority if self._scale.startswith("https:") else None
        return ask(self._scale, body, token=token, authority=trusted)


def main() -> None:
    """Set the number of workers, again and again."""
    namespace = (ACCOUNT / "namespace").read_text()
    path = f"apis/apps/v1/namespaces/{namespace}/deployments/{os.environ['DEPLOYMENT']}/scale"
    autoscaler = Autoscaler(
        "http://127.0.0.1:8787",
        f"https://kubernetes.default.svc/{path}",
        int(os.environ["MIN_WORKERS"]),
        int(os.environ["MAX_WORKERS"]),
    )
    while True:
        try:
            autoscaler.step(time.monotonic())
        except (OSError, ValueError, KeyError) as e:
            print(f"The number of workers stays as it is: {e}", flush=True)
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    main()
