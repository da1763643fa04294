"""Peak memory of this process."""

import resource
from pathlib import Path


def peak_mib() -> float:
    """Return the peak of this process's resident memory, MiB.

    Linux: `ru_maxrss` begins with what the parent held when it forked; `VmHWM` begins anew with the program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
