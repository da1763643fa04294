"""Faults: each is done to a job at a random moment, and the job is started again until it is complete."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from tests.chaos.jobs import JOBS, WORKER, Attempt, Job, Place, require
from tests.processes import Popen, alive, below, end, until

DISK_MIB = 64
SIGKILLED, SIGTERMED = -signal.SIGKILL, 128 + signal.SIGTERM
ENDED = (0, 1)  # of a command to which something has happened that it may or may not survive


@dataclass
class Try:
    """One try of a kind of fault.

    Args:
        place: Where it happens.
        chance: The generator of all that is random in it.
        name: Of its folder.
        faults: How many were done so far.
    """

    place: Place
    chance: np.random.Generator
    name: str
    faults: int = 0

    def job(self, *names: str) -> Job:
        """Choose a job, most often the first."""
        return JOBS[names[0] if self.chance.random() < 0.6 else str(self.chance.choice(names))]

    @contextmanager
    def attempt(self, job: Job, folder: Path | None = None) -> Iterator[Attempt]:
        """Make a folder for a job, whose undisturbed run is known, and remove it at the end."""
        self.place.whole(job)
        made = Attempt(self.place, job, folder or self.place.folder / self.name)
        try:
            yield made
        finally:
            for process in list(made.processes()):
                with suppress(psutil.Error):
                    process.kill()
            made.remove()

    def wait(self, attempt: Attempt, process: Popen, least: float = 0.0, most: float = 1.0) -> bool:
        """Wait for a random moment of a start, as a part of an undisturbed one; returns whether it still runs."""
        seconds = self.chance.uniform(least, most) * self.place.whole(attempt.job).last.seconds
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.poll() is None

    def wait_for_workers(self, process: Popen) -> list[psutil.Process]:
        """Wait until workers are there, and a random moment more; empty if the command has ended before."""
        until(lambda: self.place.workers or process.poll() is not None)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.chance.exponential(2.0))
        return self.place.workers


ALL = ("upscale", "train", "upscale, TensorFlow", "evaluate", "sweep")


def driver_killed(this: Try) -> None:
    """Kill the command at two to four moments."""
    with this.attempt(this.job(*ALL)) as attempt:
        for _ in range(this.chance.integers(2, 5)):
            process = attempt.start()
            if this.wait(attempt, process):
                process.kill()
                this.faults += 1
            ended = attempt.finish(process)
            require(ended.status in (0, SIGKILLED), f"status {ended.status}: {ended.err[-1500:]}")
            attempt.require_whole_results()
            attempt.require_no_processes()
        attempt.conclude()


def driver_terminated(this: Try) -> None:
    """Send the command what a batch system sends."""
    with this.attempt(this.job(*ALL)) as attempt:
        process = attempt.start()
        # Before Python has come to the command, the signal ends it at once.
        running = this.wait(attempt, process, 0.3)
        if running:
            process.terminate()
            this.faults += 1
        ended = attempt.finish(process)
        ended.require_message(0, SIGTERMED, *([-signal.SIGTERM] if not attempt.out.exists() else []))
        require("RUNNING" not in attempt.runs(), f"MLflow runs: {attempt.runs()}")
        attempt.require_whole_results()
        attempt.conclude()


def worker_killed(this: Try) -> None:
    """Kill a worker."""
    with this.attempt(this.job(*ALL)) as attempt:
        process = attempt.start()
        if workers := this.wait_for_workers(process):
            _kill(workers[this.chance.integers(len(workers))])
            this.faults += 1
        attempt.finish(process).require_message(*ENDED)
        attempt.require_whole_results()
        attempt.conclude()


def raylet_killed(this: Try) -> None:
    """Kill the raylet of a node with workers, which ends them."""
    with this.attempt(this.job(*ALL)) as attempt:
        process = attempt.start()
        this.wait_for_workers(process)
        node = this.place.nodes.processes[this.chance.integers(1, 3)]
        for child in below(node):
            if child.name() == "raylet":
                _kill(child)
                this.faults += 1
        until(lambda: node.poll() is not None)
        attempt.finish(process).require_message(*ENDED)
        attempt.require_whole_results()
        this.place.nodes.restore()
        attempt.conclude()


def node_killed(this: Try) -> None:
    """Kill all processes of a node."""
    with this.attempt(this.job(*ALL)) as attempt:
        process = attempt.start()
        this.wait_for_workers(process)
        end(this.place.nodes.processes[this.chance.integers(1, 3)])
        this.faults += 1
        attempt.finish(process).require_message(*ENDED)
        attempt.require_whole_results()
        this.place.nodes.restore()
        attempt.conclude()


def own_ray_killed(this: Try) -> None:
    """Kill the driver, the raylet or a worker of a command that has started its own Ray."""
    with this.attempt(this.job("upscale", "upscale, TensorFlow", "train", "evaluate")) as attempt:
        process = attempt.start(own_ray=True)
        until(lambda: list(_named(process, "raylet")) or process.poll() is not None)
        with suppress(subprocess.TimeoutExpired):
            process.wait(this.chance.exponential(4.0))
        victim = str(this.chance.choice(["driver", "raylet", WORKER]))
        with suppress(psutil.NoSuchProcess):  # the command may have ended meanwhile
            for one in [psutil.Process(process.pid)] if victim == "driver" else list(_named(process, victim))[:1]:
                _kill(one)
                this.faults += 1
        ended = attempt.finish(process)
        if victim != "driver":
            ended.require_message(*ENDED)
        attempt.require_whole_results()
        attempt.require_no_processes()
        attempt.conclude()


def stopped(this: Try) -> None:
    """Stop the driver or a worker for a while (SIGSTOP)."""
    with this.attempt(this.job(*ALL)) as attempt:
        process = attempt.start()
        if this.chance.random() < 0.5:
            halted = [psutil.Process(process.pid)] if this.wait(attempt, process) else []
        else:
            halted = this.wait_for_workers(process)[:1]
        for one in halted:
            with suppress(psutil.NoSuchProcess):
                one.suspend()
                time.sleep(this.chance.uniform(0.2, 4.0))
                one.resume()
                this.faults += 1
        attempt.finish(process).require_message(0)
        attempt.conclude()


def disk_full(this: Try) -> None:
    """Let a disk run full that holds outputs, tracking store and temporary files, then make room."""
    job = this.job("upscale", "upscale", "train", "evaluate")
    folder = this.place.folder / this.name
    folder.mkdir()
    with _small_disk(folder) as limited, this.attempt(job, folder) as attempt:
        limit = int(this.chance.integers(1, 3000)) << 10  # bytes
        if limited:
            ballast = folder / "ballast"
            size = shutil.disk_usage(folder).free - limit
            ballast.write_bytes(bytes(max(0, size)))
            process = attempt.start()
        else:
            process = attempt.start(prefix=("prlimit", f"--fsize={limit}"))
        this.faults += 1
        attempt.finish(process).require_message(0, 1, 2)
        attempt.require_whole_results()
        if limited:
            ballast.unlink()
        attempt.conclude()


def can_mount(folder: Path) -> bool:
    """True if a small disk can be mounted here."""
    trial = folder / "trial"
    trial.mkdir()
    with _small_disk(trial) as limited:
        return limited


@contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of a few MiB; yields whether that is possible."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = sys.platform == "linux" and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
            shutil.rmtree(folder, ignore_errors=True)


def store_locked(this: Try) -> None:
    """Hold the lock of the tracking store for seconds."""
    with this.attempt(this.job("upscale", "train", "evaluate")) as attempt:
        process = attempt.start()
        if this.wait(attempt, process, 0.2, 0.8):
            with closing(_locked(attempt)):
                time.sleep(this.chance.uniform(0.5, 10.0))
            this.faults += 1
        attempt.finish(process).require_message(0, 1, 2)  # refused where it could not begin
        attempt.require_whole_results()
        attempt.conclude()


def store_slow(this: Try) -> None:
    """Let the tracking store be free only one moment in four."""
    with this.attempt(this.job("upscale", "train", "evaluate")) as attempt:
        process = attempt.start()
        this.wait(attempt, process, 0.0, 0.8)
        for _ in range(20):
            if process.poll() is not None:
                break
            with closing(_locked(attempt)):
                time.sleep(0.3)
            this.faults = 1
            time.sleep(0.1)
        attempt.finish(process).require_message(0, 1, 2)  # refused where it could not begin
        attempt.require_whole_results()
        attempt.conclude()


def store_gone(this: Try) -> None:
    """Take the file of the tracking store away for seconds."""
    with this.attempt(this.job("upscale", "train", "evaluate")) as attempt:
        process, store, away = attempt.start(), attempt.folder / "mlflow.db", attempt.folder / "away"
        if this.wait(attempt, process, 0.3, 0.8):
            store.rename(away)
            with suppress(subprocess.TimeoutExpired):
                process.wait(this.chance.uniform(0.5, 10.0))
            away.replace(store)
            this.faults += 1
        attempt.finish(process).require_message(0, 1, 2)
        attempt.require_whole_results()
        attempt.conclude()


def _locked(attempt: Attempt) -> sqlite3.Connection:
    connection = sqlite3.connect(attempt.folder / "mlflow.db", timeout=60, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def two_writers(this: Try) -> None:
    """Start the command twice at once: one of them writes, the other is refused or finds all done."""
    with this.attempt(this.job("upscale", "train")) as attempt:
        options = ("--resume",) if this.chance.random() < 0.5 else ()
        first = attempt.start(*options)
        time.sleep(this.chance.uniform(0.0, 0.3) * this.place.whole(attempt.job).last.seconds)
        second = attempt.start(*options or ["--overwrite"] * int(this.chance.integers(2)))
        this.faults += 1
        ended = [attempt.finish(process, number) for number, process in ((1, first), (2, second))]
        for one in ended:
            one.require_message(0, 2)
        require(0 in {one.status for one in ended}, "neither has finished")
        attempt.require_whole_results()
        attempt.conclude()


def clock_jumps(this: Try) -> None:
    """Let the wall clock jump while the command runs, and the times of its files before it is resumed."""
    with this.attempt(this.job("upscale", "train", "evaluate")) as attempt:
        whole = this.place.whole(attempt.job).last.seconds
        jump = float(this.chance.choice([-1, 1]) * 10 ** this.chance.uniform(1, 8))
        process = attempt.start(CHAOS_CLOCK=f"{this.chance.uniform(0, whole)},{jump}")
        this.faults += 1
        if this.chance.random() < 0.5 and this.wait(attempt, process, 0.5):
            process.kill()
        ended = attempt.finish(process)
        if ended.status != SIGKILLED:
            ended.require_message(0)
        for path in attempt.out.rglob("*"):
            os.utime(path, (time.time() + jump, time.time() + jump))
        attempt.require_whole_results()
        attempt.conclude()


def _named(process: Popen, name: str) -> Iterator[psutil.Process]:
    with suppress(psutil.Error):
        for child in below(process):
            with suppress(psutil.Error):
                if child.name().startswith(name) and alive(child):
                    yield child


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


# By the name of the group in which tries are counted together.
FAULTS: dict[str, dict[str, Callable[[Try], None]]] = {
    "kills": {
        "driver killed": driver_killed,
        "driver terminated": driver_terminated,
        "worker killed": worker_killed,
        "raylet killed": raylet_killed,
        "node killed": node_killed,
        "own Ray killed": own_ray_killed,
    },
    "disk and store": {
        "disk full": disk_full,
        "store locked": store_locked,
        "store slow": store_slow,
        "store gone": store_gone,
    },
    "others": {"stopped": stopped, "two writers": two_writers, "clock jumps": clock_jumps},
}
