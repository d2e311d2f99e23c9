"""A process that uses a cache of files: `python cache_process.py <facts as JSON>`.

It prints a line for each step, and keeps the file until its input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from girder_dask.files.cache import FileCache

URL = "http://girder.invalid/api/v1"


def say(*words: Any) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def fetch(facts: dict[str, Any], part: Path) -> None:
    """Write the file in two halves. On request, stop between them forever."""
    with Path(facts["fetches"]).open("a") as f:
        f.write(f"{os.getpid()}\n")
    size = facts["file"]["size"]
    with part.open("wb") as f:
        f.write(b"x" * (size // 2))
        f.flush()
        say("half")
        if facts.get("hang"):
            threading.Event().wait()
        time.sleep(facts.get("pause", 0))
        f.write(b"x" * (size - size // 2))


def use_file(facts: dict[str, Any]) -> None:
    cache = FileCache(facts["directory"], facts["max_bytes"])
    with contextlib.closing(cache.lease()) as lease:
        told = threading.Event()

        def waiting() -> None:
            # The first call is made before it is known whether another process fetches the file.
            if facts.get("tell") and told.is_set():
                say("waiting")
            told.set()

        path = lease.get(URL, facts["file"], lambda part: fetch(facts, part), waiting=waiting)
        say("got", path.stat().st_size if path else None)
        sys.stdin.read()


def main() -> None:
    facts = json.loads(sys.argv[1])
    threads = [
        threading.Thread(target=use_file, args=(facts,)) for _ in range(facts.get("threads", 1))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
