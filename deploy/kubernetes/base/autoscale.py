"""The autoscaler: sets the numbers of workers to what the scheduler asks for.

The scheduler counts the jobs that wait, by the rules of Dask's adaptive clusters, and those that
wait for a GPU apart. More workers come at once, fewer when the scheduler has asked for fewer for
some time. A worker that is asked to end lets its jobs end (``girder.scheduler.leave-grace``).
"""

import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
INTERVAL_S = float(os.environ.get("INTERVAL_S", "15"))
#: Seconds for which fewer workers must be asked for before their number is reduced.
PATIENCE_S = float(os.environ.get("PATIENCE_S", "300"))
TIMEOUT_S = 10.0
#: The metric of the scheduler, by whether the workers offer a GPU.
WANTED = re.compile(
    r'^girder_dask_scheduler_wanted_workers{gpu="(true|false)"} (\S+)$', re.MULTILINE
)
NOT_FOUND = 404


def wanted_workers(scheduler: str) -> dict[bool, int]:
    """Return the numbers of workers that a scheduler asks for, by whether they offer a GPU."""
    with urllib.request.urlopen(f"{scheduler}/metrics", timeout=TIMEOUT_S) as answer:  # noqa: S310
        found = WANTED.findall(answer.read().decode())
    return {gpu == "true": int(float(number)) for gpu, number in found}


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
    """The number of workers of one Deployment, as the scheduler asks for it.

    Parameters
    ----------
    scale
        The resource ``scale`` of the workers' Deployment.
    minimum, maximum
        The least and the largest number of workers.
    account
        The directory of the token and of the certificate for Kubernetes.
    """

    def __init__(self, scale: str, minimum: int, maximum: int, account: Path = ACCOUNT) -> None:
        self._scale = scale
        self._minimum = minimum
        self._maximum = maximum
        self._account = account
        self._lower: list[tuple[float, int]] = []

    def step(self, wanted: int, now: float) -> int:
        """Set the number of workers, and return it. ``now`` is in seconds."""
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


def of_deployment(name: str, bounds: str) -> Autoscaler:
    """Return the autoscaler of a Deployment, with the least and the largest number as ``1-10``."""
    namespace = (ACCOUNT / "namespace").read_text()
    path = f"apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"
    minimum, _, maximum = bounds.partition("-")
    return Autoscaler(f"https://kubernetes.default.svc/{path}", int(minimum), int(maximum))


def main() -> None:
    """Set the numbers of workers, again and again."""
    scalers = {
        False: of_deployment("worker", os.environ["WORKERS"]),
        True: of_deployment("worker-gpu", os.environ["GPU_WORKERS"]),
    }
    while True:
        try:
            step(scalers, "http://127.0.0.1:8787")
        except (OSError, ValueError, KeyError) as e:
            print(f"The numbers of workers stay as they are: {e}", flush=True)
        time.sleep(INTERVAL_S)


def step(scalers: dict[bool, Autoscaler], scheduler: str) -> None:
    """Set the number of each Deployment that is there."""
    wanted = wanted_workers(scheduler)
    for has_gpu, scaler in scalers.items():
        try:
            scaler.step(wanted[has_gpu], time.monotonic())
        except urllib.error.HTTPError as e:
            # A site without the component gpu.
            if not (has_gpu and e.code == NOT_FOUND):
                raise


if __name__ == "__main__":
    main()
