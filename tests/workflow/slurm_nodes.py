"""A SLURM of two virtual nodes on this machine, with its own daemons; each node has a host name of its own."""

import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.conftest import unused_port
from tests.processes import until
from tests.workflow.small_upscaling import ROOT

NODES = {"node1": "127.0.0.11", "node2": "127.0.0.12"}
CONFIGURATION = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=1,sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
MailProg=/bin/true
FirstJobId={first_job}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={name} NodeAddr={address} Port={port} CPUs=8 RealMemory=40000 Gres=gpu:2\n"
IN_NAMESPACES = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


@dataclass(frozen=True)
class Slurm:
    """A SLURM that runs, seen by a user in a login shell.

    Args:
        folder: Of its state and logs; in `checkout` in it are the packages and an environment.
        name: Of the cluster, by which processes of its jobs are known.
        environment: Variables of that shell.
    """

    folder: Path
    name: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def checkout(self) -> Path:
        """The working directory of `submit`, where logs go."""
        return self.folder / "checkout"

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run a program of SLURM; return what it prints."""
        done = subprocess.run(
            command, cwd=cwd or self.checkout, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, options: str, *command: str, cwd: Path | None = None) -> str:
        """Submit the script with a command; return the number of the job."""
        return self.run("sbatch", "--parsable", *options.split(), "configs/cluster/voxlift.slurm", *command, cwd=cwd)

    def fields(self, job: str) -> dict[str, str]:
        """Return what SLURM says of a job."""
        pairs = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)

    def log(self, job: str, cwd: Path | None = None) -> str:
        path = (cwd or self.checkout) / f"voxlift-{job}.log"
        return path.read_text() if path.exists() else ""

    def ended(self, job: str) -> int:
        """Wait for the end of a job; return the exit status of the script."""
        until(lambda: self.fields(job)["JobState"] in ENDED, every=0.3)
        return int(self.fields(job)["ExitCode"].partition(":")[0])

    def processes(self, job: str) -> list[psutil.Process]:
        """Return the processes of a job, on all nodes."""
        return [one for one in _processes(self.name) if one.info["environ"].get("SLURM_JOB_ID") == job]

    def workers(self, job: str) -> dict[str, psutil.Process]:
        """Return the processes of a job in which Ray does work, by the name of their node."""
        working = [one for one in self.processes(job) if "".join(one.info["cmdline"]).startswith("ray::_")]
        return {one.info["environ"]["SLURMD_NODENAME"]: one for one in working}

    def left_by(self, job: str) -> list[object]:
        """Return the processes and folders of a job that are still there."""
        return [*self.processes(job), *Path("/tmp").glob(f"voxlift-{job}*")]  # noqa: S108 - where the script keeps them


def _processes(cluster: str) -> list[psutil.Process]:
    """Return the processes of the jobs of a cluster."""
    every = psutil.process_iter(["environ", "cmdline"])
    return [one for one in every if (one.info["environ"] or {}).get("SLURM_CLUSTER_NAME") == cluster]


@contextmanager
def slurm_nodes(folder: Path) -> Iterator[Slurm]:
    """Run a SLURM in a folder until the block ends. It needs root, its programs, and namespaces."""
    for program in ("slurmctld", "slurmd", "munged", "unshare"):
        assert shutil.which(program), f"{program} is not installed; .ci/slurm installs SLURM"
    probe = ["unshare", "--mount", "--uts", "hostname", "node1"]
    allowed = subprocess.run(probe, capture_output=True, text=True, check=False)
    assert allowed.returncode == 0, f"virtual nodes need root and mount and UTS namespaces: {allowed.stderr}"

    slurm = Slurm(folder, f"voxlift{secrets.token_hex(4)}", _login_environment(folder))
    _configure(slurm)
    munge = ["munged", "--foreground", "--force", "--origin=127.0.0.1", f"--socket={folder}/munge.sock"]
    munge += [f"--{file}-file={folder}/munge.{file}" for file in ("key", "pid", "log", "seed")]
    with ExitStack() as stack:

        def daemon(log_name: str, *command: str) -> None:
            log = stack.enter_context((folder / log_name).open("w"))
            process = subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        daemon("munged.log", *munge)
        until((folder / "munge.sock").exists)
        daemon("slurmctld.log", "slurmctld", "-D", "-c")
        for name in NODES:
            hosts = str(folder / "hosts")
            node = ("bash", "-c", IN_NAMESPACES, "-", hosts, name, "slurmd", "-D", "-N", name)
            daemon(f"{name}.log", "unshare", "--mount", "--uts", *node)
        stack.callback(_end_jobs, slurm)
        until(lambda: _idle(slurm) == list(NODES), every=0.3)
        yield slurm


def _login_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a login shell, with nothing of voxlift's own on the path."""
    paths = [part for part in os.environ["PATH"].split(":") if part != str(Path(sys.executable).parent)]
    kept = {name: os.environ[name] for name in ("HOME", "USER", "LANG") if name in os.environ}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return kept | quiet | {"PATH": ":".join(paths), "SLURM_CONF": str(folder / "slurm.conf")}


def _configure(slurm: Slurm) -> None:
    """Write the configuration of SLURM and lay out a checkout."""
    folder = slurm.folder
    values = {"name": slurm.name, "host": socket.gethostname().partition(".")[0], "folder": folder}
    numbers = {"port": unused_port(), "first_job": random.randrange(10**6, 6 * 10**7)}  # noqa: S311 - no secret
    nodes = [NODE.format(name=name, address=address, port=unused_port()) for name, address in NODES.items()]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values, **numbers) + "".join(nodes))
    for number in range(2):  # without a file for each GPU, SLURM takes the node for broken
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    names = "".join(f"{address} {name}\n" for name, address in NODES.items())
    (folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)
    for name in ("state", "checkout", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    for name in ("configs", "models", "tasks", "workflow", "voxlift.py"):
        (slurm.checkout / name).symlink_to(ROOT / name)
    (slurm.checkout / ".venv").symlink_to(sys.prefix)


def _idle(slurm: Slurm) -> list[str]:
    """Return the names of the nodes that wait for jobs."""
    listing = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    answer = subprocess.run(listing, env=slurm.environment, capture_output=True, text=True, check=False)
    return sorted(answer.stdout.split())


def _end_jobs(slurm: Slurm) -> None:
    """End what a test that failed has left."""
    for process in _processes(slurm.name):
        process.kill()
    for folder in {path for one in slurm.checkout.rglob("voxlift-*.log") for path in slurm.left_by(one.stem[8:])}:
        shutil.rmtree(str(folder), ignore_errors=True)
