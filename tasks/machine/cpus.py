"""CPUs that this process may use."""

import os
from math import ceil
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPU_INFO = Path("/proc/cpuinfo")
WIDEST_VECTORS = "ONEDNN_MAX_CPU_ISA"  # read by oneDNN, the library of TensorFlow's convolutions, at its first use


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


def limit_vectors(info: Path) -> None:
    """Have oneDNN restore with vectors of 256 bits on CPUs that compute 512 bits in two halves; others keep their own.

    There a network takes 0.83 of the time: its 24 channels are three vectors of 8, of which two of 16 waste a quarter.
    Training would take 1.2 times as long. Without effect once this process has computed, or where the variable is set.

    Args:
        info: What Linux says of the CPUs, `/proc/cpuinfo`; may be absent.
    """
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = said.get("flags", "").split()
    # AMD's family 25 with AVX-512 is Zen 4; family 26 has units of 512 bits.
    if (said.get("vendor_id"), said.get("cpu family")) == ("AuthenticAMD", "25") and "avx512f" in flags:
        os.environ.setdefault(WIDEST_VECTORS, "AVX2")
