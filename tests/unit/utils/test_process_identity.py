"""Identities of processes."""

from __future__ import annotations

import subprocess

from girder_dask.utils.process_identity import has_ended, identity


def test_has_ended_sees_the_end_of_a_process_and_one_with_its_number() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    named = identity(process.pid)
    try:
        assert not has_ended(named)
        later = named.split(" ")
        assert has_ended(" ".join([*later[:4], str(int(later[4]) + 1)]))
    finally:
        process.kill()
    process.wait()
    assert has_ended(named)


def test_has_ended_knows_of_earlier_boots_but_of_no_other_host_or_namespace() -> None:
    host, boot, namespace, pid, _ = identity().split(" ")
    assert has_ended(f"{host} earlier {namespace} {pid} 1")
    assert not has_ended(f"{host} {boot} pid:[1] {pid} 1")
    assert not has_ended(f"elsewhere {boot} {namespace} {pid} 1")
    assert not any(map(has_ended, ["", "a b", f"{host} {boot} {namespace} x 1"]))
