"""Objects that are reset in forked processes."""

from __future__ import annotations

import gc
import os

from girder_dask.utils.forks import reset_after_fork


class Connection:
    def __init__(self) -> None:
        self.is_open = True
        reset_after_fork(self, Connection.drop)

    def drop(self) -> None:
        self.is_open = False


def test_reset_after_fork_resets_in_the_child_alone() -> None:
    connection = Connection()
    child = os.fork()
    if child == 0:
        os._exit(1 if connection.is_open else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert connection.is_open


def test_reset_after_fork_keeps_nothing_alive() -> None:
    dropped: list[None] = []

    class Counted(Connection):
        def __del__(self) -> None:
            dropped.append(None)

    Counted()
    gc.collect()
    assert dropped == [None]
