"""End the processes of a Ray once the driver that started it is gone, however it ended.

Ray's own processes notice the death of their driver one by one, and some of them only after a minute. This script is
run by its path, with neither Ray nor voxlift imported: `python -P watcher.py FOLDER`. Its standard input is a pipe
whose other end the driver alone holds; it is closed when the driver closes it or dies.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator

import psutil

LIMIT_SECONDS = 20.0  # after which a process that was killed is given up: the kernel holds it


def holders(folder: str, driver: int) -> Iterator[psutil.Process]:
    """Find the processes with an open file in a folder, but for the driver: each process of a Ray has its log there."""
    for process in psutil.process_iter():
        try:
            if process.pid != driver and any(file.path.startswith(f"{folder}/") for file in process.open_files()):
                yield process
        except psutil.Error:  # it is gone, or another user's
            continue


def end_all(folder: str, driver: int) -> None:
    """Kill the processes of the Ray whose folder this is, those that are still being started included."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (found := list(holders(folder, driver))) and time.monotonic() < deadline:
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(found, timeout=1)


if __name__ == "__main__":
    parent = os.getppid()
    keep = sys.stdin.buffer.read()
    end_all(sys.argv[1], parent)
    if not keep:
        shutil.rmtree(sys.argv[1], ignore_errors=True)
