"""The failure of a task whose process ended before its function returned."""

from __future__ import annotations

import os
import signal

from girder_dask.jobs import JobStatus
from girder_dask.worker.failures import TERMINATING_SIGNALS, Failure

__all__ = ["failure_of_death"]


def failure_of_death(status: int | None, hostname: str) -> Failure:
    """Return the failure of a process that exited, or was ended by a signal not from girder_dask.

    Parameters
    ----------
    status
        Its status from ``os.waitpid``, None if that is lost.
    hostname
        The host that it ran on.
    """
    killed = status is None or (
        os.WIFSIGNALED(status) and os.WTERMSIG(status) in TERMINATING_SIGNALS
    )
    if status is None:
        line = f"The task's process on {hostname} was lost. Start the job again."
    elif os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        line = f"The task's process was ended by the signal {name}"
        if name == "SIGKILL":
            line += (
                f", and not by girder_dask. The kernel of {hostname} may have killed it for lack "
                "of memory: check its log, and give the task more memory or less to do."
            )
        else:
            line += ", for example after a crash in C code or a kill command."
    else:
        code = os.waitstatus_to_exitcode(status)
        line = (
            f"The task's process ended with the exit code {code} before the function "
            "returned, as os._exit() does. Return from the function to end in SUCCESS."
        )
    return Failure(JobStatus.ERROR, f"{line}\n", line, killed=killed)
