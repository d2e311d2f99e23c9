#!/usr/bin/env python3
"""A scheduler with the jobs of Girder, and workers in batch jobs, as many as the queue needs.

::

    DASK_CONFIG=/etc/girder_dask/scheduler \\
        /opt/girder_dask/bin/python cluster.py slurm --minimum 0 --maximum 20

It runs on a login or service node until SIGTERM. The directory ``DASK_CONFIG`` holds ``dask.yaml``
of the scheduler, from ``girder-dask init``, and ``jobqueue.yaml``.
"""

import argparse
import os
import signal
import sys

import dask.config
import dask_jobqueue
from dask.utils import parse_timedelta
from dask_jobqueue.local import LocalCluster

from girder_dask.scheduler.plugin import GirderSchedulerPlugin

SYSTEMS = {
    "htcondor": dask_jobqueue.HTCondorCluster,
    "local": LocalCluster,
    "lsf": dask_jobqueue.LSFCluster,
    "moab": dask_jobqueue.MoabCluster,
    "oar": dask_jobqueue.OARCluster,
    "pbs": dask_jobqueue.PBSCluster,
    "sge": dask_jobqueue.SGECluster,
    "slurm": dask_jobqueue.SLURMCluster,
}
HOOKS = "girder_dask.scheduler_hooks"


def seconds(walltime: str) -> float:
    """Return the seconds of ``HH:MM:SS`` or ``DAYS-HH:MM:SS``.

    >>> seconds("1-02:00:30")
    93630.0
    """
    days, _, clock = walltime.rpartition("-")
    hours, minutes, rest = ([0, 0] + [float(part) for part in clock.split(":")])[-3:]
    return float(days or 0) * 86400 + hours * 3600 + minutes * 60 + rest


def lifetime_options(walltime_s: float, grace_s: float) -> list[str]:
    """Return the options that let a worker leave before its batch job is killed.

    Its jobs then have ``girder.scheduler.leave-grace`` to end. Workers that began together leave at
    different times, up to a tenth of the walltime earlier.

    >>> lifetime_options(36000, 3600)
    ['--lifetime', '28710s', '--lifetime-stagger', '3600s']
    """
    stagger_s = walltime_s / 10
    start_s = 30 if walltime_s > 600 else 5
    lifetime_s = walltime_s - grace_s - stagger_s - start_s - walltime_s / 600
    if lifetime_s < walltime_s / 10:
        sys.exit(
            f"Workers have a walltime of {walltime_s:.0f} s and girder.scheduler.leave-grace is "
            f"{grace_s:.0f} s, which leaves them no time. Set a longer walltime in "
            "jobqueue.yaml, or a shorter grace."
        )
    return ["--lifetime", f"{lifetime_s:.0f}s", "--lifetime-stagger", f"{stagger_s:.0f}s"]


def start(system: str) -> dask_jobqueue.JobQueueCluster:
    """Start the scheduler, without any worker."""
    settings = dask.config.get(f"jobqueue.{system}")
    options = list(settings.get("worker-extra-args") or [])
    if settings.get("walltime"):
        grace_s = parse_timedelta(dask.config.get("girder.scheduler.leave-grace", "30s"))
        options += lifetime_options(seconds(str(settings["walltime"])), grace_s)
    preloads = [HOOKS, *(dask.config.get("distributed.scheduler.preload") or [])]
    dask.config.set({"distributed.scheduler.preload": list(dict.fromkeys(preloads))})
    encrypted = dask.config.get("distributed.comm.require-encryption")
    return SYSTEMS[system](worker_extra_args=options, protocol="tls://" if encrypted else "tcp://")


def main() -> int:
    """Run until SIGTERM, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=sorted(SYSTEMS))
    parser.add_argument("--minimum", type=int, default=0, help="The least number of batch jobs.")
    parser.add_argument("--maximum", type=int, required=True, help="The most batch jobs.")
    arguments = parser.parse_args()
    # Threads that start from here on do not take these signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    with start(arguments.system) as cluster:
        plugins = cluster.scheduler.plugins.values()
        if not any(isinstance(plugin, GirderSchedulerPlugin) for plugin in plugins):
            # Dask has logged why.
            print("The scheduler cannot run the jobs of Girder and ends.", file=sys.stderr)
            return os.EX_CONFIG
        cluster.adapt(minimum_jobs=arguments.minimum, maximum_jobs=arguments.maximum)
        print(f"The scheduler is at {cluster.scheduler_address}", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


if __name__ == "__main__":
    sys.exit(main())
