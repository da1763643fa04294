"""Stand-ins of `sbatch`, `srun`, `scontrol` and `scancel`, on one machine that poses as several nodes.

Run as `python slurm_stand_in.py PROGRAM ARGUMENT…`. Options that SLURM has and the script does not use are errors, as
are those that SLURM does not have.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

KILL_WAIT = 30.0  # SLURM's own default between SIGTERM and SIGKILL
FOLDER = Path(os.environ.get("SLURM_STAND_IN", "."))


def parser(program: str, *options: str, flags: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(program, allow_abbrev=False)
    for option in options:
        made.add_argument(f"--{option}")
    for flag in flags:
        made.add_argument(f"--{flag}", action="store_true")
    return made


def sbatch(arguments: list[str]) -> int:
    """Run the script as batch shell of a job whose nodes are loopback addresses; wait for it."""
    known = ("job-name", "output", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "gpus-per-node", "time")
    reader = parser("sbatch", *known, "signal", flags=("wait",))
    reader.add_argument("script", type=Path)
    reader.add_argument("arguments", nargs=argparse.REMAINDER)
    script = reader.parse_args(arguments).script
    given = reader.parse_args([*directives(script), *arguments])
    assert given.wait, "this sbatch only waits"
    assert re.fullmatch(r"B:TERM@\d+", given.signal)

    job, nodes = str(os.getpid()), int(given.nodes)
    spooled = FOLDER / "slurm_script"
    shutil.copyfile(script, spooled)
    spooled.chmod(0o700)
    environment = os.environ | {
        "SLURM_JOB_ID": job,
        "SLURM_SUBMIT_DIR": str(Path.cwd()),
        "SLURM_JOB_NODELIST": f"127.0.0.[1-{nodes}]",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_CPUS_PER_TASK": given.cpus_per_task,
        "SLURM_MEM_PER_NODE": str(int(given.mem.removesuffix("G")) * 1024),
    }
    with (FOLDER / given.output.replace("%j", job)).open("w") as log:
        shell = subprocess.Popen(
            [spooled, *given.arguments], env=environment, cwd=FOLDER, stdout=log, stderr=log, start_new_session=True
        )
    (FOLDER / f"{job}.pid").write_text(str(shell.pid))
    print(f"Submitted batch job {job}", flush=True)  # noqa: T201 - as sbatch does
    return shell.wait()


def directives(script: Path) -> list[str]:
    """The options in the file, which end where its commands begin."""
    found = []
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH "):
            found += line.split()[1:]
        elif line and not line.startswith("#"):
            break
    return found


def srun(arguments: list[str]) -> int:
    """Run a step: a task in a session of its own, ended as SLURM ends it."""
    reader = parser("srun", "nodes", "ntasks", "cpus-per-task", "nodelist", flags=("overlap",))
    reader.add_argument("command", nargs=argparse.REMAINDER)
    given = reader.parse_args(arguments)
    assert (given.nodes, given.ntasks) == ("1", "1")
    assert given.overlap, "another step has the CPUs: this one would wait for ever"
    assert given.nodelist in hostnames(os.environ["SLURM_JOB_NODELIST"])
    with (FOLDER / "steps").open("a") as steps:
        steps.write(f"{given.nodelist} {' '.join(given.command)}\n")
    environment = os.environ | {"SLURMD_NODENAME": given.nodelist}
    task = subprocess.Popen(given.command, env=environment, start_new_session=True)

    def terminate(number: int, frame: FrameType | None) -> None:
        family = psutil.Process(task.pid).children(recursive=True)
        for process in [psutil.Process(task.pid), *family]:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        with suppress(subprocess.TimeoutExpired):
            task.wait(KILL_WAIT)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family)

    signal.signal(signal.SIGTERM, terminate)
    return task.wait()


def scontrol(arguments: list[str]) -> int:
    assert arguments[:2] == ["show", "hostnames"]
    print(*hostnames(arguments[2]), sep="\n")  # noqa: T201 - as scontrol does
    return 0


def hostnames(nodes: str) -> list[str]:
    """
    >>> hostnames("127.0.0.[1-3]")
    ['127.0.0.1', '127.0.0.2', '127.0.0.3']
    """
    found = re.fullmatch(r"(.*)\[(\d+)-(\d+)\]", nodes)
    assert found, nodes
    return [f"{found[1]}{number}" for number in range(int(found[2]), int(found[3]) + 1)]


def scancel(arguments: list[str]) -> int:
    """Signal the batch shell of a job."""
    reader = parser("scancel", "signal", flags=("batch",))
    reader.add_argument("job")
    given = reader.parse_args(arguments)
    assert given.batch, "this scancel only signals the script"
    os.kill(int((FOLDER / f"{given.job}.pid").read_text()), signal.Signals[f"SIG{given.signal}"])
    return 0


if __name__ == "__main__":
    program = {"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "scancel": scancel}[sys.argv[1]]
    sys.exit(program(sys.argv[2:]))
