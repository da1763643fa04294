"""Commands in small, undisturbed and disturbed, and what is expected of each start and of what is left at the end."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from configs.axes import FileShape
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_volume
from tests.processes import Popen, alive, below, until
from tests.ray_nodes import RayNodes, ray_nodes
from tests.tasks.small_training import SMALL

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds, for any start of a command
WORKER = "ray::_"  # what Ray names a process that works for a driver begins with
VOLUMES = ("one.nii.gz", "two.nii.gz")
NODE = "--num-cpus=2 --object-store-memory=100000000"


class TryError(AssertionError):
    """The faults found in a try."""


def require(condition: object, problem: str) -> None:
    if not condition:
        raise TryError(problem)


@dataclass(frozen=True)
class Ended:
    """A start of a command that has ended, by itself or by a signal."""

    status: int
    out: str
    err: str
    seconds: float

    def require_message(self, *allowed: int) -> None:
        """Check that it ended as documented: with an allowed status, and no traceback on the terminal."""
        shown = f"status {self.status}: {self.err[-1500:]}"
        require(self.status in allowed, shown)
        require("Traceback (most recent call last)" not in self.out + self.err, f"a traceback, {shown}")
        require("was not foreseen" not in self.err, f"an error that was not foreseen, {shown}")
        if self.status in (1, 2):
            require("voxlift: " in self.err or "failed" in self.out, f"no message, {shown}")


@dataclass(frozen=True)
class Job:
    """A command in small.

    Args:
        name: Of the command.
        arguments: With OUT in place of the folder for its outputs.
        results: Pattern of the files that have to be the same, byte for byte.
        light: Whether the workers need no TensorFlow.
        resumes: Whether it has `--resume`.
    """

    name: str
    arguments: tuple[str, ...]
    results: str = ""
    light: bool = False
    resumes: bool = True


def settings(*rules: str) -> tuple[str, ...]:
    """Options of a small training."""
    small = (*SMALL, "data.held_out=null", "training.checkpoints.every=5", "resources.workers=1")
    return tuple(f"--set={rule}" for rule in (*small, *rules))


SCORED = "data.validation=[fine.nii.gz]"
UPSCALE = (
    *("upscale", *VOLUMES, "--out", "OUT", "--model", "small.keras", "--scale", "2,2,2"),
    *("--workers", "2", "--memory-budget", "44", "--json"),
)
JOBS = {
    job.name: job
    for job in (
        Job("upscale", UPSCALE, "*_sr.nii.gz", light=True),
        Job("upscale, TensorFlow", UPSCALE, "*_sr.nii.gz"),
        Job(
            "train",
            ("train", "demo", "--out", "OUT", "--json", *settings("data.volumes=[fine.nii.gz]", "training.steps=40")),
            "model.keras",
        ),
        Job(
            "sweep",
            ("sweep", "sweep.yaml", "--out", "OUT", "--json", *settings(SCORED, "training.steps=10")),
            "*/model.keras",
        ),
        Job(
            "evaluate",
            ("evaluate", "fine.nii.gz", "--model", "small.keras", "--degradation", "iso2x", "--json"),
            light=True,
            resumes=False,
        ),
    )
}


@dataclass
class Place:
    """Inputs, a tracking store with its tables, a cluster of three nodes, and undisturbed runs.

    Args:
        folder: Holds all.
        nodes: The cluster; the head takes no work.
        wholes: Undisturbed runs by the name of the job.
    """

    folder: Path
    nodes: RayNodes
    wholes: dict[str, "Attempt"] = field(default_factory=dict)

    def prepare(self) -> None:
        """Write the inputs and make the tables of the tracking store."""
        inputs = self.folder / "inputs"
        inputs.mkdir()
        for number, name in enumerate((*VOLUMES, "fine.nii.gz")):
            size = 48 if name == "fine.nii.gz" else 40
            voxels = np.random.default_rng(number).gamma(2.0, 300.0, (size, size - 2, size - 5)).astype(np.float32)
            write_volume(
                inputs / name, voxels, Grid(FileShape(*voxels.shape), np.diag([-1.0, 1.2, 2.0, 1.0])), dtype="int16"
            )
        (inputs / "sweep.yaml").write_text(
            "degradation: iso2x\ndata: {volumes: [fine.nii.gz]}\nsweep: {training.seed: [0, 1]}\n"
        )
        # In processes of their own: this one loads neither TensorFlow nor MLflow.
        script = "from tests.networks import small_restorer; small_restorer().save('small.keras')"
        subprocess.run(
            [sys.executable, "-c", script], cwd=inputs, env=self.environment(), check=True, capture_output=True
        )
        script = "from workflow.tracking import recorded_run\nwith recorded_run('other', 'tables'): pass"
        subprocess.run(
            [sys.executable, "-c", script], cwd=inputs, env=self.environment(), check=True, capture_output=True
        )
        shutil.rmtree(inputs / "mlruns", ignore_errors=True)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_ADDRESS", "MLFLOW_TRACKING"))
        }
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "TF_CPP_MIN_LOG_LEVEL": "3"}
        return {**kept, **quiet, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **more}

    def whole(self, job: Job) -> "Attempt":
        """Return an undisturbed run of a job."""
        if job.name not in self.wholes:
            attempt = Attempt(self, job, self.folder / f"whole {job.name}".replace(" ", "-").replace(",", ""))
            attempt.last = attempt.finish(attempt.start())
            attempt.last.require_message(0)
            self.wholes[job.name] = attempt
        return self.wholes[job.name]

    @property
    def workers(self) -> list[psutil.Process]:
        """Processes of the cluster that work for a driver."""
        found: list[psutil.Process] = []
        for node in self.nodes.processes:
            with suppress(psutil.NoSuchProcess):
                found += below(node)
        return [process for process in found if name_of(process).startswith(WORKER) and alive(process)]


def name_of(process: psutil.Process) -> str:
    """Name of a process; empty if it has ended."""
    try:
        return process.name()
    except psutil.Error:
        return ""


class Attempt:
    """One try: a folder of its own with a store of its own, in which a job is started as often as it takes."""

    def __init__(self, place: Place, job: Job, folder: Path) -> None:
        self.place, self.job, self.folder = place, job, folder
        folder.mkdir(exist_ok=True)
        for path in (place.folder / "inputs").iterdir():
            (folder / path.name).symlink_to(path) if path.suffix != ".db" else shutil.copy(path, folder)
        self.starts = 0
        self.last = Ended(0, "", "", 0.0)
        self.began = 0.0

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def scratch(self) -> Path:
        """The folder for temporary files of the last start."""
        return self.folder / f"tmp-{self.starts}"

    def start(self, *options: str, own_ray: bool = False, prefix: tuple[str, ...] = (), **environment: str) -> Popen:
        """Start the command, a second time to resume it; its streams go to files."""
        arguments = [argument.replace("OUT", "out") for argument in self.job.arguments]
        if self.starts and self.job.resumes and not {"--resume", "--overwrite"} & {*options}:
            arguments.append("--resume")
        self.starts += 1
        self.scratch.mkdir()
        light = {"CHAOS_LIGHT": "1"} if self.job.light else {}
        ray = {} if own_ray else dict(self.place.nodes.environment) | {"TMPDIR": str(self.scratch)}
        whole = self.place.environment(**light, **ray, CHAOS_TRY=str(self.folder), **environment)
        self.began = time.monotonic()
        with self._stream("out").open("w") as out, self._stream("err").open("w") as err:
            return subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.chaos.driver", *arguments, *options],
                cwd=self.folder,
                env=whole,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def finish(self, process: Popen, number: int = 0) -> Ended:
        """Wait for a start to end."""
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            for one in [*below(process), psutil.Process(process.pid)]:
                one.kill()
            process.wait()
            raise TryError(f"not ended within {PATIENCE:g} s: {self._text('err', number)[-1500:]}") from None
        out, err = (self._text(name, number) for name in ("out", "err"))
        return Ended(process.returncode, out, err, time.monotonic() - self.began)

    def _stream(self, name: str, number: int = 0) -> Path:
        # Next to the folder, which may be a disk that is full.
        return self.folder.with_name(f"{self.folder.name}.{name}-{number or self.starts}")

    def _text(self, name: str, number: int) -> str:
        return self._stream(name, number).read_text(errors="replace")

    def results(self) -> dict[str, str]:
        """Digest of each result that is there, by its path within the folder."""
        found = sorted(self.out.glob(self.job.results)) if self.job.results else []
        found = [path for path in found if not path.name.startswith(".")]  # of a writer that was killed
        return {str(path.relative_to(self.out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    def require_whole_results(self) -> None:
        """Check that no result is half-written: each that is there is that of the undisturbed run."""
        whole = self.place.whole(self.job).results()
        for name, digest in self.results().items():
            require(whole[name] == digest, f"{name} is not that of an undisturbed run")

    def conclude(self) -> None:
        """Start the command once more, undisturbed, and check all that it leaves."""
        self.last = self.finish(self.start())
        self.last.require_message(0)
        left = list(self.folder.rglob("record.jsonl"))
        require(not left, f"records that wait for the tracking store: {left}")
        self.require_same()

    def require_same(self) -> None:
        """Check that files, records and processes are those after an undisturbed run."""
        whole = self.place.whole(self.job)
        require(self.results() == whole.results(), "the results are not those of an undisturbed run")
        if not self.job.results:
            mine, theirs = (json.loads(attempt.last.out)["volumes"][0]["psnr"] for attempt in (self, whole))
            require(mine == theirs, "the scores are not those of an undisturbed run")
        left, expected = self._files(), whole._files()
        require(left == expected, f"left over: {sorted(left - expected)}; missing: {sorted(expected - left)}")
        require(not any(self.scratch.iterdir()), f"temporary files: {list(self.scratch.iterdir())}")
        statuses = self.runs()
        require(set(statuses) <= {"FINISHED", "FAILED", "KILLED"}, f"MLflow runs: {statuses}")
        require("FINISHED" in statuses, f"MLflow runs: {statuses}")
        self.require_no_processes()

    def require_no_processes(self) -> None:
        """Check that no process of this try is left, within the time that Ray takes to notice."""
        try:
            until(lambda: not self.place.workers and not list(self.processes()), seconds=30)
        except AssertionError:
            left = [*self.place.workers, *self.processes()]
            raise TryError(f"processes left: {[name_of(process) for process in left]}") from None

    def runs(self) -> list[str]:
        """Status of each run in the store of this try."""
        with sqlite3.connect(self.folder / "mlflow.db") as store:
            found = store.execute("SELECT status FROM runs WHERE name != 'tables'").fetchall()
        return [str(status) for (status,) in found]

    def _files(self) -> set[str]:
        return {str(path.relative_to(self.out)) for path in self.out.rglob("*") if path.is_file()}

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.environ().get("CHAOS_TRY") == str(self.folder) and alive(process):
                    yield process
            except psutil.Error:
                continue

    def remove(self) -> None:
        """Remove the folder and what the starts have printed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in self.folder.parent.glob(f"{self.folder.name}.*"):
            path.unlink()


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Make a place with a cluster until the block ends."""
    nodes: Mapping[str, str] = {
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "RAY_raylet_start_wait_time_s": "300",  # on a machine that is busy with the rest of the campaign
    }
    with ray_nodes(folder, "--num-cpus=0 --object-store-memory=100000000", NODE, NODE, environment=nodes) as cluster:
        made = Place(folder, cluster)
        made.prepare()
        yield made
