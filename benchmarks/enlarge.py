"""Read a volume, resample it by 2x2x2, write it: `python -m benchmarks.enlarge INPUT OUTPUT`, in a process of its own.

Prints as JSON the seconds of reading and of resampling with writing, and the peak of resident memory.
"""

import json
import sys
import time
from pathlib import Path

from benchmarks.memory import peak_mib
from tasks.imaging.resample import resampled_slabs
from tasks.volume.grid import scaled_grid
from tasks.volume.nifti import open_volume, write_slabs


def main(source: Path, output: Path) -> None:
    begun = time.perf_counter()
    scan = open_volume(source)
    volume = scan.read()
    read = time.perf_counter()
    grid = scaled_grid(scan.grid, (2, 2, 2))
    write_slabs(output, resampled_slabs(volume.voxels, grid.shape), grid, scan)
    done = time.perf_counter()
    print(json.dumps({"read_s": read - begun, "resample_and_write_s": done - read, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
