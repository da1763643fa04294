"""Read a volume, resample it by 2x2x2, write it: `python -m benchmarks.enlarge INPUT OUTPUT`, in a process of its own.

Prints as JSON the seconds of reading and of resampling with writing, and the peak of resident memory.
"""

import json
import sys
import time
from pathlib import Path

from benchmarks.memory import peak_mib
from tasks.imaging.resample import resample_window
from tasks.volume.grid import scaled_grid
from tasks.volume.nifti import open_volume, write_slabs

SLAB = 16  # planes


def main(source: Path, output: Path) -> None:
    begun = time.perf_counter()
    scan = open_volume(source)
    volume = scan.read()
    read = time.perf_counter()
    grid = scaled_grid(scan.grid, (2, 2, 2))
    i, j, planes = grid.shape
    windows = (((start, min(start + SLAB, planes)), (0, j), (0, i)) for start in range(0, planes, SLAB))
    slabs = (resample_window(volume.voxels.T, (planes, j, i), window).T for window in windows)
    write_slabs(output, slabs, grid, scan)
    done = time.perf_counter()
    print(json.dumps({"read_s": read - begun, "resample_and_write_s": done - read, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
