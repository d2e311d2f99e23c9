"""What a job starts writes to the job's log."""
# ruff: noqa: S602, S605, S606 - starting shells in every way is what is tested

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from girder_dask.worker.job_log.log import JobLog, capturing, current
from girder_dask.worker.propagation import fork_propagation, hooks, subprocess_propagation
from tests.support.captured_output import (
    DEADLINE,
    Worker,
    bare_root_logger,
    installed,
    wait_until,
)

PRINT_LINES = "for i in range({n}): print('{name} process', i)"


@contextlib.contextmanager
def carrying() -> Iterator[Worker]:
    with installed() as worker:
        hooks.install()
        try:
            yield worker
        finally:
            hooks.uninstall()


@contextlib.contextmanager
def in_job() -> Iterator[JobLog]:
    # Not a fixture: pytest sets sys.stdout anew after the fixtures.
    log = JobLog()
    with carrying(), capturing(log):
        yield log
    log.close()


def number_of_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- all together --------------------------------------------------------------------------


def chatter(name: str, count: int) -> None:
    """Print from four places at once."""

    def child() -> None:
        for i in range(count):
            print(name, "child", i)

    def log() -> None:
        for i in range(count):
            logging.getLogger("task").info("%s logging %d", name, i)

    code = PRINT_LINES.format(n=count, name=name)
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        threads = [threading.Thread(target=child), threading.Thread(target=log)]
        for thread in threads:
            thread.start()
        for i in range(count):
            print(name, "main", i)
        for thread in threads:
            thread.join()
        assert process.wait() == 0


def test_eight_jobs_at_once_have_exactly_their_own_lines(monkeypatch):
    # A machine that is busy may leave a writer in the middle of a line for longer than that.
    monkeypatch.setattr("girder_dask.worker.job_log.pipe._LINE_TIMEOUT_S", 30.0)
    monkeypatch.setattr("girder_dask.worker.job_log.line_assembler._MAX_HOLD_S", 30.0)
    count, job_logs = 500, [JobLog() for _ in range(8)]
    barrier = threading.Barrier(8)

    def run(number: int) -> None:
        barrier.wait()
        with capturing(job_logs[number]):
            chatter(f"job{number}", count)
        job_logs[number].close()

    with bare_root_logger(), carrying() as worker:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(run, range(8)))
        assert worker.out() == worker.err() == ""
    for number, log in enumerate(job_logs):
        lines = log.take().splitlines()
        assert len(lines) == 4 * count
        for source in ("main", "child", "logging", "process"):
            mine = [line for line in lines if line.split()[1] == source]
            assert mine == [f"job{number} {source} {i}" for i in range(count)]


def test_a_subprocess_stands_between_what_was_printed_before_and_after():
    with in_job() as job:
        for _ in range(50):
            print("a")
            subprocess.run(["echo", "b"], check=True)
            print("c", end="")
            subprocess.run(["printf", "d"], check=True)
            print("e")
            assert job.take() == "a\nb\ncde\n"


def test_a_subprocess_that_was_started_before_a_line_was_begun():
    with in_job() as job:
        process = subprocess.Popen(["sh", "-c", "read go; echo done"], stdin=subprocess.PIPE)
        print("waiting... ", end="")
        process.communicate(b"\n", timeout=DEADLINE)
        print("over")
        assert job.take() == "waiting... done\nover\n"


# -- threads -------------------------------------------------------------------------------


class Overriding(threading.Thread):
    def run(self) -> None:
        print("overridden")


def test_threads_of_every_kind_write_to_the_job():
    with in_job() as job:
        for thread in (
            threading.Thread(target=print, args=("plain",)),
            Overriding(),
            threading.Timer(0, print, ("timer",)),
        ):
            thread.start()
            thread.join()
            assert "run" not in vars(thread)
        nested = threading.Thread(target=threads_of_a_thread)
        nested.start()
        nested.join()
        assert job.take() == "plain\noverridden\ntimer\ngrandchild\n"


def threads_of_a_thread() -> None:
    thread = threading.Thread(target=print, args=("grandchild",))
    thread.start()
    thread.join()


def test_what_ends_a_thread_is_shown_in_the_job(monkeypatch):
    with in_job() as job:
        monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        assert "ZeroDivisionError" in job.take()


def test_a_thread_starts_once():
    with in_job() as job:
        thread = threading.Thread(target=print, args=("once",))
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="once"):
            thread.start()
        assert job.take() == "once\n"


def test_threads_that_dask_starts_belong_to_no_job():
    with in_job():
        seen = []

        def loop() -> None:
            seen.append(current.get())

        loop.__module__ = "distributed.utils"
        thread = threading.Thread(target=loop)
        thread.start()
        thread.join()
        assert seen == [None]


def test_a_pool_works_for_the_one_that_submits():
    first, second = JobLog(), JobLog()
    with carrying() as worker, concurrent.futures.ThreadPoolExecutor(1) as pool:
        with capturing(first):
            pool.submit(print, "first").result()  # starts the pool's thread
        with capturing(second):
            pool.submit(print, "second", end="!\n").result()
        pool.submit(print, "worker").result()
        assert worker.out() == "worker\n"
    assert first.take() == "first\n"
    assert second.take() == "second!\n"


# -- subprocesses --------------------------------------------------------------------------


def test_both_streams_of_a_subprocess_keep_their_order():
    with in_job() as job:
        script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done"
        subprocess.run(["sh", "-c", script], check=True)
        assert job.take() == "".join(f"out {i}\nerr {i}\n" for i in (1, 2, 3))


def test_explicit_streams_of_a_subprocess_are_left_alone(tmp_path):
    with in_job() as job:
        script = "echo out; echo err >&2"
        done = subprocess.run(script, shell=True, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("out\n", "err\n")
        assert subprocess.check_output(script, shell=True, stderr=subprocess.DEVNULL) == b"out\n"
        assert job.take() == ""
        assert subprocess.check_output(script, shell=True) == b"out\n"
        assert job.take() == "err\n"
        with (tmp_path / "out").open("w") as file:
            subprocess.run(script, shell=True, stdout=file, stderr=subprocess.STDOUT, check=True)
        assert (tmp_path / "out").read_text() == "out\nerr\n"
        assert job.take() == ""


def test_streams_may_be_given_by_position_or_as_the_workers_own():
    with in_job() as job:
        positional = ["echo positional", -1, None, None, None, None, None, True, True]
        assert subprocess.Popen(*positional).wait() == 0
        subprocess.run(["sh", "-c", "echo error >&2"], stdout=1, stderr=sys.stdout, check=True)
        subprocess.run(["sh", "-c", "echo out"], stdout=sys.stdout.buffer, check=True)
        assert job.take() == "positional\nerror\nout\n"


def test_os_system_and_popen():
    with in_job() as job:
        assert os.system("echo system; exit 3") >> 8 == 3
        assert os.WTERMSIG(os.system("kill -9 $$")) == signal.SIGKILL
        with os.popen("echo read; echo error >&2") as pipe:
            assert pipe.read() == "read\n"
        assert job.take() == "system\nerror\n"


async def test_subprocesses_of_asyncio():
    log = JobLog()
    with carrying(), capturing(log):
        process = await asyncio.create_subprocess_exec("echo", "async")
        assert await process.wait() == 0
        assert log.take() == "async\n"
        log.close()


def test_a_full_buffer_holds_up_a_subprocess_and_loses_nothing():
    log = JobLog(capacity=100_000)
    with carrying(), capturing(log):
        process = subprocess.Popen(["seq", "1", "400000"])
        wait_until(lambda: log._buffer.size >= 100_000, "the buffer never filled")
        assert process.poll() is None
        assert log._buffer.size < 100_000 + 1_200_000
        taken: list[str] = []
        wait_until(lambda: taken.append(log.take()) or process.poll() is not None, "it hangs")
        log.close()
    taken.append(log.take())
    assert "".join(taken) == "".join(f"{i}\n" for i in range(1, 400_001))


def test_characters_that_a_read_splits():
    with in_job() as job:
        subprocess.run([sys.executable, "-c", "print('€' * 100_001)"], check=True)
        assert job.take() == "€" * 100_001 + "\n"


def test_the_output_of_a_subprocess_arrives_by_itself():
    arrived = threading.Event()
    log = JobLog(on_text=arrived.set)
    with carrying(), capturing(log):
        process = subprocess.Popen(["sh", "-c", "echo now; read answer"], stdin=subprocess.PIPE)
        assert arrived.wait(DEADLINE)
        assert log.take() == "now\n"
        process.communicate(b"\n")
        log.close()


def test_a_process_that_outlives_its_job_writes_to_the_worker():
    log = JobLog()
    with carrying() as worker:
        with capturing(log):
            process = subprocess.Popen(
                ["sh", "-c", "echo early; read answer; seq 1 50000; echo $answer >&2"],
                stdin=subprocess.PIPE,
            )
            wait_until(lambda: log._buffer.size, "nothing came")
        log.close()
        assert log.take() == "early\n"
        process.communicate(b"late\n", timeout=DEADLINE)
        assert process.returncode == 0
        wait_until(lambda: worker.err().endswith("late\n"), "the end was lost")
        assert worker.err() == "".join(f"{i}\n" for i in range(1, 50_001)) + "late\n"
        wait_until(lambda: log._pipe.ended, "the pipe stayed open")


def test_a_job_that_is_over_starts_a_subprocess(capfd):
    log = JobLog()
    with carrying(), capturing(log):
        log.close()
        subprocess.run(["echo", "worker's"], check=True)
    assert log.take() == ""
    assert capfd.readouterr().out == "worker's\n"


def test_descriptors_are_not_leaked():
    with carrying():
        for number in range(201):
            log = JobLog()
            with capturing(log):
                subprocess.run(["true"], check=True)
            log.close()
            if number == 0:
                before = number_of_descriptors()
        wait_until(lambda: number_of_descriptors() <= before, "descriptors stay open")


def test_a_subprocess_of_a_run_carries_its_name_in_its_environment():
    command, given = 'printf "$GIRDER_DASK_RUN $OWN|"', {"OWN": "kept"}
    positional = [["sh", "-c", command], -1, None, None, None, None, None, True, False, None]
    with in_job() as job:
        subprocess.run(["sh", "-c", command], check=True)
        subprocess_propagation.set_run_id(job, "run-7")
        subprocess.run(["sh", "-c", command], check=True)
        subprocess.run(["sh", "-c", command], check=True, env=given)
        subprocess.run(["sh", "-c", command], check=True, env={b"OWN": b"bytes"})
        assert subprocess.Popen(*positional, given).wait() == 0
        os.system(command)
        process = multiprocessing.get_context("fork").Process(target=os.system, args=(command,))
        process.start()
        process.join(DEADLINE)
        assert job.take() == " |run-7 |run-7 kept|run-7 bytes|run-7 kept|run-7 |run-7 |"
    assert given == {"OWN": "kept"}
    assert subprocess_propagation.RUN_VARIABLE not in os.environ


# -- forks ---------------------------------------------------------------------------------


def in_child() -> None:
    print("from the child")
    print("and its stderr", file=sys.stderr)
    os.write(1, b"descriptor\n")
    subprocess.run(["echo", "grandchild"], check=True)
    os.system("echo system")
    print("unfinished", end="")


def test_a_forked_child_writes_to_the_job():
    with in_job() as job:
        process = multiprocessing.get_context("fork").Process(target=in_child)
        process.start()
        process.join(DEADLINE)
        assert process.exitcode == 0
        print("!")
        expected = "from the child\nand its stderr\ndescriptor\ngrandchild\nsystem\nunfinished!\n"
        assert job.take() == expected


def test_a_fork_does_not_wait_for_the_locks_of_other_threads():
    with in_job() as job:
        other = JobLog()
        other.pipe()
        locked, release = threading.Event(), threading.Event()

        def hold() -> None:
            with job._lock, other._lock:
                locked.set()
                release.wait(DEADLINE)

        job.pipe()
        thread = threading.Thread(target=hold)
        before, fork_propagation._is_active = (
            fork_propagation._is_active,
            False,
        )  # the hook before the fork needs the lock
        thread.start()
        assert locked.wait(DEADLINE)
        child = os.fork()
        if child == 0:
            fork_propagation._is_active = before
            fork_propagation._after_fork_in_child()
            other_pipe_is_closed = other._pipe.write_fd is None
            print("child", other_pipe_is_closed, flush=True)
            os._exit(0)
        fork_propagation._is_active = before
        release.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        assert job.take() == "child True\n"
        other.close()


def test_the_terminal_of_a_forked_child_is_its_own():
    with in_job() as job:
        child, terminal = pty.fork()
        if child == 0:
            os.execvp("echo", ["echo", "on the terminal"])
        assert os.read(terminal, 100).strip() == b"on the terminal"
        os.waitpid(child, 0)
        os.close(terminal)
        assert job.take() == ""


def test_a_preexec_function_does_no_harm():
    with in_job() as job:
        subprocess.run(["echo", "ran"], preexec_fn=lambda: None, check=True)
        done = subprocess.run(["echo", "x"], preexec_fn=lambda: None, stdout=-1, check=True)
        assert done.stdout == b"x\n"
        assert job.take() == "ran\n"


# -- installing ----------------------------------------------------------------------------


def test_uninstall_restores_everything_and_outside_of_jobs_nothing_changes(capfd):
    def patched() -> tuple[object, ...]:
        return (
            threading.Thread.start,
            concurrent.futures.ThreadPoolExecutor.submit,
            subprocess.Popen.__init__,
            os.system,
        )

    before = patched()
    hooks.install()
    hooks.install()
    assert not set(patched()) & set(before)
    assert [f.__name__ for f in patched()] == ["start", "submit", "__init__", "system"]
    assert os.system("exit 2") >> 8 == 2
    subprocess.run(["echo", "worker's"], check=True)
    hooks.uninstall()
    hooks.uninstall()
    assert patched() == before
    assert capfd.readouterr().out == "worker's\n"
