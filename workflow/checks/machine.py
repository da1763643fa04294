"""Doctor checks of the machine: Python, packages, CPUs, disk."""

import os
import platform
import shutil
import tempfile
from importlib.metadata import metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from configs.schema import Resources
from tasks.machine.check import Attempt, Checklist
from tasks.machine.cpus import CGROUP, bound_cpus, cpu_quota, usable_cpus
from tasks.machine.versions import installed_versions

PACKAGE = "voxlift"
WHEELS = ("tensorflow", "tensorflow-cpu")  # both install the folder `tensorflow`
GIB = 2**30
FEW_BYTES, LEAST_BYTES = 5 * GIB, GIB // 4
TRIED_BYTES = 2**20
MAX_NAMED = 5
SETUP = "Run make setup, which installs the versions that constraints.txt pins."


def machine_checks(constraints: Path) -> Checklist:
    """Check Python, packages (against a file of constraints), CPUs and disk."""
    checks = Checklist()
    python = "Run make setup PYTHON=/path/to/python3.11."
    with checks.trying("Python", "the version that voxlift needs", python) as attempt:
        needed, found = metadata(PACKAGE)["Requires-Python"], platform.python_version()
        (attempt.ok if SpecifierSet(needed).contains(found) else attempt.failure)(f"{found}, needs {needed}")
    with checks.trying("packages", f"installed versions against {constraints.name}", SETUP) as attempt:
        _packages(attempt, constraints)
    tried = "threads that would be started against CPUs"
    with checks.trying("CPU threads", tried, "Ask for fewer --workers.") as attempt:
        _threads(attempt)
    for name, folder, remedy in (
        ("working directory", Path.cwd, "Work in a folder of your own."),
        ("temporary folder", lambda: Path(tempfile.gettempdir()), "Set TMPDIR to a folder with room."),
    ):
        with checks.trying(name, "writing there, room", remedy) as attempt:
            free = free_bytes(folder())
            note = attempt.failure if free < LEAST_BYTES else attempt.warning if free < FEW_BYTES else attempt.ok
            note(f"{free / GIB:.1f} GiB free in {folder()}")
    return checks


def _packages(attempt: Attempt, constraints: Path) -> None:
    """Compare what is installed with what is needed and with what is pinned."""
    wheels = [name for name in WHEELS if _installed(name)]
    needed = [(need, _installed(need.name)) for need in map(Requirement, requires(PACKAGE) or ()) if not need.marker]
    unmet = [
        f"{need.name} {found} (needs {need.specifier})" if found else f"no {need.name}"
        for need, found in needed
        if not found or not _admits(need, found)
    ] + ([] if wheels else ["no TensorFlow"])
    if unmet:
        attempt.failure(_listed(unmet))
    elif len(wheels) > 1:
        attempt.warning("tensorflow and tensorflow-cpu in one folder", "Run make clean, then make setup.")
    elif not constraints.is_file():
        remedy = "Run it in a checkout of voxlift, or name the file with --constraints."
        attempt.warning(f"all that are needed; {constraints} is not there to compare with", remedy)
    else:
        lines = [line.partition("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines()]
        pins = [(pin, found) for pin in map(Requirement, filter(None, lines)) if (found := _installed(pin.name))]
        others = [f"{pin.name} {found} ({pin.specifier})" for pin, found in pins if not _admits(pin, found)]
        as_pinned = f"{len(pins) - len(others)} as pinned"
        if others:
            attempt.warning(f"{as_pinned}, {len(others)} not: {_listed(others)}")
        else:
            attempt.ok(as_pinned)


def _admits(requirement: Requirement, found: str) -> bool:
    return requirement.specifier.contains(found, prereleases=True)


def _installed(name: str) -> str | None:
    return installed_versions(name).get(name)


def _listed(parts: list[str]) -> str:
    more = f" and {len(parts) - MAX_NAMED} more" if len(parts) > MAX_NAMED else ""
    return ", ".join(parts[:MAX_NAMED]) + more


def _threads(attempt: Attempt) -> None:
    """Compare what TensorFlow and the default workers would start with the CPUs that this process may use."""
    cpus, usable, quota = bound_cpus(), usable_cpus(), cpu_quota(CGROUP)
    # TensorFlow's pool heeds the CPUs that the process is bound to, but no quota.
    pool = int(os.environ.get("TF_NUM_INTRAOP_THREADS") or cpus)
    resources = Resources()
    workers = resources.workers * resources.cpus_per_worker
    limit = f", a quota of {quota:g}" if quota else ""
    seen = f"{usable} usable of {os.cpu_count()} CPUs{limit}; {pool} of TensorFlow in a training, {workers} of workers"
    if pool > usable:
        attempt.warning(seen, f"Set TF_NUM_INTRAOP_THREADS={usable}.")
    elif workers > usable:
        attempt.warning(seen, f"Ask for --workers {usable}.")
    else:
        attempt.ok(seen)


def free_bytes(folder: Path) -> int:
    """Write a file into a folder, remove it, and return the free bytes.

    Raises:
        OSError: It cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder, prefix=".voxlift-probe-") as file:
        file.write(bytes(TRIED_BYTES))
        file.flush()
        os.fsync(file.fileno())
        return shutil.disk_usage(folder).free
