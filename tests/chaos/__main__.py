"""A campaign of faults: `python -m tests.chaos --minutes N [--seed S]`.

Mutated files are read in a process of their own, while commands in small are killed, stopped, and robbed of disk and
store, one after another, in this one. Prints a table of tries and failures by kind; the exit status is 1 if any failed.
Every failure is printed with the arguments that repeat it, though its moment varies with the load of the machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from tests.chaos.faults import FAULTS, Try, can_mount
from tests.chaos.jobs import ROOT, Place, TryError, place

MUTATIONS = 900  # a minute
HISTORIES = 8  # a minute, of the state machine
HISTORIES_KILLED = "state machine: killed"
HISTORIES_FULL = "state machine: disk full"
# Driver kills and faults of disk and store come more often than others.
ORDER = (
    *("driver killed", "disk full", "worker killed", "store locked", "driver killed", "node killed", "store gone"),
    *("own Ray killed", "disk full", "driver terminated", "stopped", "driver killed", "store locked", "raylet killed"),
    *("store slow", "two writers", "disk full", "worker killed", "store gone", "driver killed", "clock jumps"),
)
KINDS = {kind: do for group in FAULTS.values() for kind, do in group.items()}


@dataclass
class Count:
    """Tries of one kind."""

    tries: int = 0
    faults: int = 0
    failures: list[str] = field(default_factory=list)


def tried(here: Place, kind: str, seed: int, counted: Count, console: Console) -> None:
    """Make one try of a kind and count it."""
    this = Try(here, np.random.default_rng(seed), f"{kind.replace(' ', '-')}-{seed}")
    began = time.monotonic()
    try:
        KINDS[kind](this)
        problem = ""
    except TryError as failed:
        problem = str(failed)
    except Exception:  # noqa: BLE001 - of the campaign itself: a failure too
        problem = traceback.format_exc()
    counted.tries += 1
    counted.faults += this.faults
    if problem:
        counted.failures.append(f"--only '{kind}' --seed {seed}")
        console.print(f"FAILED --only '{kind}' --seed {seed}: {problem}", markup=False, soft_wrap=True)
        for process in here.workers:
            process.kill()
    console.print(f"{kind}: {this.faults} fault(s), {time.monotonic() - began:.0f} s", markup=False)
    here.nodes.restore()


def campaign(minutes: float, seed: int, only: str | None, console: Console) -> dict[str, Count]:
    """Make tries until the time is over, at least one.

    Args:
        minutes: For the tries of faults; the rest may take longer.
        seed: Of the first try.
        only: A kind of which one try is made, instead of all.
        console: For progress.
    """
    results = {kind: Count() for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        fuzz = [sys.executable, "-m", "tests.chaos.fuzz", "--seed", str(seed * 1_000_000)]
        fuzz += ["--count", str(int(MUTATIONS * minutes) if only is None else 0)]
        machine = [sys.executable, "-m", "tests.chaos.machine", "--seed", str(seed)]
        machine += ["--count", str(max(2, int(HISTORIES * minutes)) if only is None else 0)]
        with (
            (folder / "fuzz").open("w") as fuzz_out,
            (folder / "machine").open("w") as machine_out,
            subprocess.Popen(fuzz, cwd=ROOT, stdout=fuzz_out) as fuzzing,
            subprocess.Popen(machine, cwd=ROOT, stdout=machine_out, stderr=machine_out) as operating,
        ):
            with place(folder) as here:
                if not can_mount(folder):
                    console.print("No disk can be mounted here: a limit of file sizes takes the place of a full one.")
                end, seeds = time.monotonic() + 60 * minutes, count(seed * 1000)
                for kind in [only] if only else cycle(ORDER):
                    tried(here, kind, seed if only else next(seeds), results[kind], console)
                    if time.monotonic() > end:
                        break
            fuzzing.wait()
            operating.wait()
        results |= _fuzzed((folder / "fuzz").read_text(), console)
        said = (folder / "machine").read_text()
        nothing = '{"histories": 1, "faults": 0, "kills": 0, "full_disks": 0}'
        histories = json.loads(said.splitlines()[-1] if operating.returncode == 0 else nothing)
        failed = [f"python -m tests.chaos.machine --seed {seed}"] if operating.returncode else []
        kills, full_disks = histories["kills"], histories["full_disks"]
        results["state machine"] = Count(histories["histories"], histories["faults"] - kills - full_disks, failed)
        results[HISTORIES_KILLED] = Count(kills, kills)
        results[HISTORIES_FULL] = Count(full_disks, full_disks)
        if failed:
            console.print(f"FAILED {failed[0]}: {said[-6000:]}", markup=False, soft_wrap=True)
    return results


def _fuzzed(report: str, console: Console) -> dict[str, Count]:
    """Count what the process has found that reads mutated files; one that did not come to its end has failed."""
    results = {}
    ended: dict[str, Any] = {"none": {"refused": 0, "passed": 0, "failures": [[0, "it has ended without a report"]]}}
    kinds: dict[str, Any] = json.loads(report)["kinds"] if report else ended
    for kind, found in kinds.items():
        repeat, failures = f"python -m tests.chaos.fuzz --kind {kind} --count 1 --seed", []
        for number, problem in found["failures"]:
            failures.append(f"{repeat} {number}")
            console.print(f"FAILED {failures[-1]}: {problem}", markup=False, soft_wrap=True)
        tries = found["refused"] + found["passed"] + len(failures)
        results[f"mutated: {kind}"] = Count(tries, tries, failures)
    return results


def table(results: dict[str, Count]) -> Table:
    """Lay the results out, with the sums that a campaign is measured by."""
    shown = Table("kind", "tries", "faults", "failures", "repeat with")
    for kind, counted in results.items():
        shown.add_row(
            kind, str(counted.tries), str(counted.faults), str(len(counted.failures)), "\n".join(counted.failures)
        )
    groups = {group: list(kinds) for group, kinds in FAULTS.items()}
    groups["kills"].append(HISTORIES_KILLED)
    groups["disk and store"].append(HISTORIES_FULL)
    groups["mutations"] = [kind for kind in results if kind.startswith("mutated: ")]
    shown.add_section()
    for group, kinds in groups.items():
        counts = [results[kind] for kind in kinds]
        sums = [sum(one.tries for one in counts), sum(one.faults for one in counts)]
        sums.append(sum(len(one.failures) for one in counts))
        shown.add_row(group, *map(str, sums), "")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, help="make one try of a kind, with the seed as it was printed")
    given = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    console = Console(width=150)
    began = time.monotonic()
    results = campaign(given.minutes, given.seed, given.only, console)
    console.print(table(results))
    machine = f"{psutil.cpu_count()} CPUs, {(time.monotonic() - began) / 60:.1f} minutes, seed {given.seed}"
    console.print(machine, markup=False)
    sys.exit(any(counted.failures for counted in results.values()))


if __name__ == "__main__":
    main()
