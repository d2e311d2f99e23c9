"""One process of the stack, here a shell."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from girder_dask.errors import StackError
from girder_dask.standalone import marked_processes
from girder_dask.standalone.plan import _MONGO_HINTS
from girder_dask.standalone.stack_part import Part, tail

MakePart = Callable[..., Part]


@pytest.fixture
def make_part(tmp_path: Path) -> Iterator[MakePart]:
    made: list[Part] = []

    def make(script: str, **options: Any) -> Part:
        part = Part(
            "shell",
            ["sh", "-c", script],
            env={**os.environ, marked_processes.MARK: str(tmp_path)},
            directory=tmp_path,
            log=tmp_path / "shell.log",
            **{"check": lambda: False, **options},
        )
        made.append(part)
        part.start()
        return part

    yield make
    for part in made:
        part.kill()


def until(condition: Callable[[], object], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_is_ready_shows_the_last_lines_of_a_part_that_ended(make_part: MakePart) -> None:
    part = make_part("for i in $(seq 30); do echo line $i; done; exit 3")
    until(lambda: not part.running)
    with pytest.raises(StackError) as caught:
        part.is_ready()
    message = str(caught.value)
    assert message.startswith("shell ended while starting (exit code 3).")
    assert "    line 11\n" in message
    assert message.endswith("    line 30")
    assert "line 10\n" not in message


def test_is_ready_has_a_hint_about_missing_libraries(make_part: MakePart) -> None:
    # What the dynamic linker says of mongod on a system without them.
    says = "mongod: error while loading shared libraries: libcurl.so.4: cannot open shared object"
    part = make_part(f"echo '{says}' >&2; exit 127", hints=_MONGO_HINTS)
    until(lambda: not part.running)
    with pytest.raises(StackError, match="apt-get install libcurl4 libssl3"):
        part.is_ready()


def test_is_ready_raises_after_the_timeout(make_part: MakePart) -> None:
    part = make_part("echo waiting; sleep 60", timeout=0.1)
    with pytest.raises(StackError, match=r"not ready within 0 s.(?s:.*)waiting"):
        until(part.is_ready)


def test_describe_end_names_the_signal(make_part: MakePart) -> None:
    part = make_part("kill -9 $$")
    until(lambda: not part.running)
    assert "killed by SIGKILL" in part.describe_end("has ended")
    assert "wrote nothing" in part.describe_end("has ended")


def test_is_ready_follows_the_check(make_part: MakePart, tmp_path: Path) -> None:
    part = make_part("touch up; sleep 60", check=(tmp_path / "up").exists)
    until(part.is_ready)
    assert part.running
    part.terminate()
    until(lambda: not part.running)


def test_kill_takes_the_whole_group(make_part: MakePart) -> None:
    part = make_part("trap '' TERM; sh -c 'trap \"\" TERM; echo up; sleep 60' & wait")
    until(lambda: "up" in tail(part.log))
    assert part.pid is not None
    family = [psutil.Process(part.pid), *psutil.Process(part.pid).children(recursive=True)]
    assert len(family) >= 2
    part.kill()
    until(lambda: not any(marked_processes.is_running(p) for p in family))


def test_start_keeps_the_log_of_the_previous_run(make_part: MakePart, tmp_path: Path) -> None:
    first = make_part("echo first")
    until(lambda: not first.running)
    second = make_part("echo second")
    until(lambda: not second.running)
    assert tail(tmp_path / "shell.log") == ["second"]
    assert tail(tmp_path / "shell.log.1") == ["first"]


def test_start_names_a_program_that_does_not_exist(tmp_path: Path) -> None:
    part = Part(
        "none",
        [str(tmp_path / "none")],
        env={},
        directory=tmp_path,
        log=tmp_path / "none.log",
        check=lambda: True,
    )
    with pytest.raises(StackError, match=r"none cannot be started: .*No such file"):
        part.start()


def test_marked_finds_a_process_that_has_left_its_group(
    make_part: MakePart, tmp_path: Path
) -> None:
    part = make_part("setsid sleep 60 & echo up; wait")
    until(lambda: "up" in tail(part.log))

    def has_left() -> bool:
        found = marked_processes.marked(str(tmp_path))
        with contextlib.suppress(ProcessLookupError):
            return len(found) == 2 and all(os.getsid(each.pid) == each.pid for each in found)
        return False

    until(has_left)
    part.kill()
    (stray,) = marked_processes.marked(str(tmp_path))
    marked_processes.end([stray], grace=5)
    until(lambda: marked_processes.marked(str(tmp_path)) == [])
    assert not marked_processes.is_running(stray)


def test_end_returns_when_killed_processes_have_ended(make_part: MakePart) -> None:
    part = make_part("trap '' TERM; echo up; while :; do sleep 1; done")
    until(lambda: "up" in tail(part.log))
    process = psutil.Process(part.pid)
    marked_processes.end([process], grace=0.1)
    assert not marked_processes.is_running(process)


def test_tail_makes_lines_of_mongod_readable(tmp_path: Path) -> None:
    log = tmp_path / "mongod.log"
    log.write_text(
        '{"t":{"$date":"2026-01-02T03:04:05.678+00:00"},"s":"E","c":"NETWORK","id":1,'
        '"ctx":"main","msg":"Failed","attr":{"error":"in use"}}\n{"t":1}\nplain\n'
    )
    assert tail(log) == [
        '2026-01-02T03:04:05.678+00:00 E Failed {"error": "in use"}',
        '{"t":1}',
        "plain",
    ]
    assert tail(tmp_path / "missing.log") == []


def test_limit_log_moves_what_is_too_much_beside_the_log(make_part: MakePart) -> None:
    part = make_part("echo before; while [ ! -e go ]; do sleep 0.02; done; echo after; sleep 60")
    rotated = part.log.with_name("shell.log.1")
    until(lambda: part.log.read_text().endswith("before\n"))
    part.limit_log(10_000)
    assert not rotated.exists()
    part.limit_log(5)
    assert rotated.read_text().endswith("before\n")
    assert part.log.read_text() == ""
    assert rotated.stat().st_mode & 0o777 == 0o600
    (part.directory / "go").touch()
    until(lambda: part.log.read_text() == "after\n")
    assert tail(part.log) == ["after"]


def test_limit_log_accepts_a_part_without_a_log(make_part: MakePart) -> None:
    part = make_part("sleep 60")
    part.log.unlink()
    part.limit_log(0)
    assert not part.log.exists()
