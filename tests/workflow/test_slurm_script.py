"""The SLURM script as a job on two nodes of a stand-in for SLURM: the Ray cluster and the work in it are real."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.processes import until
from tests.workflow.small_upscaling import ROOT, SmallUpscaling, digests, report_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCRIPT = "configs/cluster/voxlift.slurm"


class Slurm:
    """A SLURM of two nodes on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        stand_in = Path(__file__).with_name("slurm_stand_in.py")
        for name in ("sbatch", "srun", "scontrol", "scancel"):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" {name} "$@"\n')
            (programs / name).chmod(0o755)
        # What a login shell of a user has: nothing of voxlift's environment.
        paths = [part for part in os.environ["PATH"].split(":") if part != str(Path(sys.executable).parent)]
        self.environment = os.environ | {
            "PATH": ":".join([str(programs), *paths]),
            "SLURM_STAND_IN": str(folder),
            "VOXLIFT_VENV": sys.prefix,
        }

    def submit(self, *command, store):
        options = ["--wait", "--nodes=2", "--cpus-per-task=1", "--mem=5G"]
        return subprocess.Popen(
            ["sbatch", *options, SCRIPT, *command],
            cwd=ROOT,
            env=self.environment | {"MLFLOW_TRACKING_URI": store},
            stdout=subprocess.PIPE,
            text=True,
        )

    def use_image(self, image):
        """Run jobs in an image, by a stand-in for Apptainer; only there is the environment of voxlift on the path."""
        program = self.folder / "bin" / "apptainer"
        inside = f'PATH="{Path(sys.executable).parent}:$PATH" exec "$@"'
        program.write_text(f'#!/bin/sh\n[ "$1 $2" = "exec {image}" ] || exit 99\nshift 2\n{inside}\n')
        program.chmod(0o755)
        self.environment |= {"VOXLIFT_IMAGE": image, "VOXLIFT_VENV": "/nowhere"}

    def finish(self, submitted):
        reported, _ = submitted.communicate(timeout=600)
        job = reported.removeprefix("Submitted batch job ").strip()
        return job, (self.folder / f"voxlift-{job}.log").read_text()

    def job(self):
        (found,) = self.folder.glob("*.pid")
        return found.stem

    def left_by(self, job):
        """Processes and folders of a job that are still there."""
        marked = [process for process in psutil.process_iter(["environ"]) if _job_of(process) == job]
        return [*marked, *Path("/tmp").glob(f"voxlift-{job}*")]  # noqa: S108 - where the script keeps them


def _job_of(process):
    return (process.info["environ"] or {}).get("SLURM_JOB_ID")


@pytest.fixture
def slurm(tmp_path):
    started = Slurm(tmp_path)
    yield started
    # Where a test has failed in the middle.
    for found in tmp_path.glob("*.pid"):
        for left in started.left_by(found.stem):
            shutil.rmtree(left) if isinstance(left, Path) else left.kill()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return SmallUpscaling(tmp_path_factory.mktemp("work"), volumes=2, shape=(60, 66, 62)).prepare()


@pytest.fixture(scope="module")
def expected(work):
    return work.run_here("local", "--workers", "1")


def test_a_job_runs_on_all_nodes_and_leaves_nothing(slurm, work, expected):
    submitted = slurm.submit(*work.command("job", "--workers", "2"), store=work.store)
    job, log = slurm.finish(submitted)
    assert submitted.returncode == 0, log
    assert digests(report_in(log)) == expected
    steps = (slurm.folder / "steps").read_text()
    assert len(re.findall(r"^127\.0\.0\.1 bash .*--head", steps, re.MULTILINE)) == 1
    assert len(re.findall(r"^127\.0\.0\.2 bash .*--address=127\.0\.0\.1:\d+$", steps, re.MULTILINE)) == 1
    assert slurm.left_by(job) == []


def test_the_warning_before_the_time_limit_ends_a_job_that_can_be_resumed(slurm, work, expected):
    submitted = slurm.submit(*work.command("warned", "--workers", "2"), store=work.store)
    until(lambda: work.cores("warned") >= 2, submitted)
    polite = ["scancel", "--batch", "--signal=TERM", slurm.job()]
    subprocess.run(polite, env=slurm.environment, check=True)
    job, log = slurm.finish(submitted)
    assert submitted.returncode == 128 + signal.SIGTERM, log
    assert slurm.left_by(job) == []
    kept = work.cores("warned")
    assert kept >= 2
    (run,) = MlflowClient(work.store).search_runs(["1"], order_by=["attributes.start_time DESC"], max_results=1)
    assert run.info.status == "KILLED"

    again = slurm.submit(*work.command("warned", "--workers", "2", "--resume"), store=work.store)
    _, log = slurm.finish(again)
    assert again.returncode == 0, log
    report = report_in(log)
    assert digests(report) == expected
    assert sum(volume["shards_resumed"] for volume in report["volumes"]) >= kept


@pytest.mark.parametrize("image", ["", "voxlift.sif"])
def test_a_wrong_command_ends_the_job_with_its_status(slurm, work, image):
    if image:
        slurm.use_image(image)
    model = str(work.folder / "small.keras")
    submitted = slurm.submit("upscale", "absent.nii.gz", "--out", "refused", "--model", model, store=work.store)
    job, log = slurm.finish(submitted)
    assert submitted.returncode == 2
    assert "absent.nii.gz" in log
    assert slurm.left_by(job) == []
