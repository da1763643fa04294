"""CPUs that this process may use."""

import os
from math import ceil
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def bound_cpus() -> int:
    """Count the CPUs that this process is bound to, which may be more than a container grants."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cpus() -> int:
    """Count the CPUs that this process may use at a time, a quota of its container heeded."""
    quota = cpu_quota(CGROUP)
    return min(bound_cpus(), ceil(quota)) if quota else bound_cpus()


def cpu_quota(folder: Path) -> float | None:
    """CPUs that a container may use at a time, by the control groups mounted in a folder; None without a limit."""
    unified = folder / "cpu.max"
    old = folder / "cpu" / "cpu.cfs_quota_us", folder / "cpu" / "cpu.cfs_period_us"
    if unified.is_file():
        quota, period = unified.read_text().split()
    elif all(file.is_file() for file in old):
        quota, period = (file.read_text().strip() for file in old)
    else:
        return None
    return None if quota in {"max", "-1"} else int(quota) / int(period)
