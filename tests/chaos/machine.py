"""A state machine over plan, compute, kill, resume and verify: `python -m tests.chaos.machine --count N --seed S`.

Every start of the work is a process of its own, forked from this one: it is killed, or finds the disk full, at a file
operation that is counted, so that the moment does not vary with the load of the machine. Prints as JSON how many
histories were tried with how many faults; the exit status is 1 where one of them failed.
"""

import argparse
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.database import InMemoryExampleDatabase
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import floats, integers, sampled_from

import workflow.restore.local
from configs.axes import FileShape
from configs.errors import VoxliftError
from configs.schema import Resources
from tasks.artifacts.contracts import volume_contract
from tasks.artifacts.manifest import collect_entries, manifest_entry, note_entries, read_contracts
from tasks.artifacts.shipped import shipped_network
from tasks.files.outputs import sidecar_name
from tasks.volume.encoding import stored_name
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_slabs
from tests.chaos import driver
from tests.chaos.mutator import mutated_bytes
from workflow.upscale.plan import UpscaleRequest
from workflow.upscale.volume_work import Output, VolumeWork
from workflow.upscale.volumes import only_writer, plan_volumes, upscale

TIME_POINTS = 3  # each a shard of its own
OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
DONE, FAILED, REFUSED, UNFORESEEN = 0, 1, 2, 3  # as a command ends; the last is a traceback
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Known:
    """The inputs, and what an undisturbed run makes of them: the digests of its outputs and the names of all files."""

    inputs: Path
    outputs: dict[str, str]
    files: set[str]


class Story(RuleBasedStateMachine):
    """One folder of outputs, from the first start to the last."""

    known: ClassVar[Known]
    faults: ClassVar[int] = 0  # of all histories
    kills: ClassVar[int] = 0  # among them, those that met the process
    full_disks: ClassVar[int] = 0  # among them, those that the process met
    histories: ClassVar[int] = 0

    @initialize(resume=sampled_from([False, True]))
    def plan(self, *, resume: bool) -> None:
        Story.histories += 1
        self.folder = Path(tempfile.mkdtemp(prefix="story-"))
        self.damaged: set[str] = set()
        self.complete = False
        for path in self.known.inputs.iterdir():
            (self.folder / path.name).symlink_to(path)
        self.starts = 0 if not resume else 1

    @rule(fault=sampled_from(["kill", "full"]), operation=integers(1, 60))
    def compute_until(self, fault: str, operation: int) -> None:
        """Start, or resume, and be killed or find the disk full at a file operation."""
        status, said = started(self.folder, fault, operation, resume=self.starts > 0)
        self.starts += 1
        Story.faults += 1
        allowed = {DONE, KILLED} if fault == "kill" else {DONE, FAILED, REFUSED}
        assert status in allowed, (status, said)
        Story.kills += status == KILLED
        Story.full_disks += status in {FAILED, REFUSED}
        self.complete = status == DONE
        if self.complete:
            self.damaged.clear()

    @rule()
    def resume(self) -> None:
        """Start again and let it finish: the bytes are those of an undisturbed run."""
        status, said = started(self.folder, "", 0, resume=self.starts > 0 or self.complete)
        self.starts += 1
        assert status == DONE, (status, said)
        self.complete = True
        self.damaged.clear()
        assert outputs(self.folder) == self.known.outputs
        left = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        assert left == self.known.files, left ^ self.known.files

    @precondition(lambda self: self.starts)
    @rule(place=integers(0, 1 << 30), change=integers(0, 1 << 30))
    def damage(self, place: int, change: int) -> None:
        """Change a core, a record or an output."""
        out = self.folder / "out"
        found = sorted([*out.glob(".voxlift/**/*.core"), *out.glob(".voxlift/*.json"), *out.glob("[!.]*_sr.nii.gz")])
        if found:
            path = found[place % len(found)]
            path.write_bytes(mutated_bytes(path.read_bytes(), np.random.default_rng(change)))
            if path.name.endswith(".nii.gz"):
                self.damaged.add(path.name)
                self.complete = False
            Story.faults += 1

    @rule(jump=floats(-1e8, 1e8))
    def let_time_jump(self, jump: float) -> None:
        """Move the times of all files."""
        for path in [*self.folder.rglob("out/**/*")]:
            os.utime(path, (time.time() + jump, time.time() + jump))

    @rule()
    def verify(self) -> None:
        """Check the folder against its contracts, if it is finished.

        No precondition: the operation that meets a fault varies with the threads, and rules are not to depend on it.
        """
        if not self.complete:
            return
        contracts = read_contracts(self.folder / "out")
        assert len(contracts.seals) == 2 * len(self.known.outputs)
        assert contracts.problems(self.folder / "out", alone=False) == {}

    @invariant()
    def no_output_is_half_written(self) -> None:
        if hasattr(self, "folder"):
            found = outputs(self.folder)
            assert all(found[name] == self.known.outputs[name] for name in set(found) - self.damaged)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)


def started(folder: Path, fault: str, operation: int, *, resume: bool) -> tuple[int, str]:
    """Do the work in a forked process; returns how it ended, and its traceback if there was one."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        status = UNFORESEEN
        try:
            if fault:
                sys.addaudithook(_Fault(folder / "out", fault, operation))
            status = FAILED if _worked(folder, resume=resume) else DONE
        except VoxliftError:
            status = REFUSED
        except OSError as error:
            if error.errno == errno.ENOSPC:  # which the command line turns into its message
                status = FAILED
            else:
                log.write_text(traceback.format_exc())
        except BaseException:  # noqa: BLE001 - the parent reports it
            log.write_text(traceback.format_exc())
        finally:
            os._exit(status)
    _, code = os.waitpid(child, 0)
    said = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(code), said


class _Fault:
    """An audit hook that lets the process die, or the disk be full, from one of its file operations on."""

    def __init__(self, folder: Path, fault: str, operation: int) -> None:
        self._folder, self._fault, self._left = str(folder), fault, operation

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event not in OPERATIONS:
            return
        if not str(arguments[0]).startswith(self._folder):
            return
        self._left -= 1
        if self._left > 0:
            return
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif event in {"open", "os.mkdir"}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))


def _worked(folder: Path, *, resume: bool) -> int:
    """Do what `voxlift upscale` does, without Ray and MLflow; returns how many volumes failed."""
    sources = sorted(folder.glob("*.nii.gz"))
    request = UpscaleRequest(
        sources,
        folder / "out",
        shipped_network(),
        Resources(workers=1),
        scale=(2, 2, 2),
        resume=resume,
        overwrite=not resume,
        place="here",
    )

    def record(work: VolumeWork, output: Output) -> None:
        plan = work.plan
        contract = volume_contract(plan.target, stored_name(plan.scan.header.dtype, plan.dtype), plan.n_timepoints)
        entry, sidecar = manifest_entry(plan.output, contract), plan.output.with_name(sidecar_name(plan.output.name))
        assert entry.sha256 == output.sha256
        note_entries(plan.output.parent, {plan.output: entry, sidecar: manifest_entry(sidecar)}, "0" * 32)
        work.conclude(output)

    planned = plan_volumes(request)
    with only_writer([work for work in planned if isinstance(work, VolumeWork)]):
        report = upscale(request, planned, on_written=record)
        collect_entries(folder / "out", "0" * 32)
    return len(report.failed)


def outputs(folder: Path) -> dict[str, str]:
    """Digest of each output by its name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "out").glob("[!.]*_sr.nii.gz")
    }


@contextmanager
def undisturbed() -> Iterator[Known]:
    """Make the inputs, and run once as it should be."""
    with tempfile.TemporaryDirectory() as scratch:
        inputs, whole = Path(scratch) / "inputs", Path(scratch) / "whole"
        inputs.mkdir()
        whole.mkdir()
        for index, name in enumerate(("one.nii.gz", "two.nii.gz")):
            voxels = np.random.default_rng(index).gamma(2.0, 300.0, (TIME_POINTS, 8, 7, 6)).astype(np.float32)
            grid = Grid(FileShape(8, 7, 6), np.diag([-1.0, 1.0, 2.0, 1.0]))
            write_slabs(inputs / name, list(voxels), grid, n_timepoints=TIME_POINTS)
            (whole / name).symlink_to(inputs / name)
        assert started(whole, "", 0, resume=False) == (DONE, "")
        files = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
        yield Known(inputs, outputs(whole), files)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.machine", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    driver.SECONDS = 0.0
    setattr(workflow.restore.local, "Restorer", driver.LightRestorer)  # noqa: B010 - in place of the real one
    if given.count:
        chosen = settings(
            max_examples=given.count,
            stateful_step_count=10,
            deadline=None,
            phases=[Phase.generate],
            database=InMemoryExampleDatabase(),
            suppress_health_check=list(HealthCheck),
        )
        with undisturbed() as Story.known:
            run_state_machine_as_test(seed(given.seed)(Story), settings=chosen)
    counts = {"faults": Story.faults, "kills": Story.kills, "full_disks": Story.full_disks}
    sys.stdout.write(json.dumps({"histories": Story.histories, **counts}) + "\n")


if __name__ == "__main__":
    main()
