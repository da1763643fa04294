"""Mutate the headers of valid volumes and read each: `python -m tests.tasks.fuzz_headers COUNT SEED`.

Prints as JSON how many were refused and how many passed, the longest time that one took, and the peak of memory. What
is neither refused by an InputError nor passes ends the program with its traceback.
"""

import gzip
import json
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

from benchmarks.memory import peak_mib
from configs.errors import InputError
from tasks.artifacts.contracts import volume_contract
from tasks.volume.encoding import stored_name
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import open_volume, write_slabs
from tests.tasks.images import affine, ramp, save

NOT_FINITE = "it has voxels that are NaN or infinite"
EXTREMES = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x01",
    b"\0\0\xc0\x7f",
    b"\0\0\x80\x7f",
    b"\xff\x7f",
    b"\0\x80",
    b"\xff" * 8,
]
KINDS = [
    (".nii", nibabel.Nifti1Image, 352),
    (".nii.gz", nibabel.Nifti1Image, 352),
    (".nii", nibabel.Nifti2Image, 544),
    (".mgh", nibabel.MGHImage, 100),
    (".mgz", nibabel.MGHImage, 100),
]


def mutated(raw: bytes, header: int, generator: np.random.Generator) -> bytes:
    """Replace one to eight places of the header by random or extreme bytes, and sometimes cut the file."""
    changed = bytearray(raw)
    for _ in range(generator.integers(1, 9)):
        place = int(generator.integers(0, header))
        new = EXTREMES[generator.integers(len(EXTREMES))] if generator.random() < 0.5 else generator.bytes(2)
        changed[place : place + len(new)] = new
    return bytes(changed[: generator.integers(1, len(changed))]) if generator.random() < 0.05 else bytes(changed)


def main(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    refused = passed = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        valid = []
        for index, (ending, kind, header) in enumerate(KINDS):
            path = save(Path(folder) / f"valid{index}{ending}", ramp(affine(), (9, 8, 7)), affine(), kind=kind)
            raw = path.read_bytes()
            valid.append((ending, gzip.decompress(raw) if ending.endswith("z") else raw, header))
        for number in range(count):
            ending, raw, header = valid[number % len(valid)]
            raw = mutated(raw, header, generator)
            path = Path(folder) / f"mutated{ending}"
            path.write_bytes(gzip.compress(raw, 1) if ending.endswith("z") else raw)
            begun = time.perf_counter()
            try:
                inspect_volume(path)
                scan = open_volume(path)
                slabs = (slab for time in range(scan.header.n_timepoints) for slab in scan.slabs(time))
                write_slabs(Path(folder) / "copy.nii", slabs, scan.grid, scan, n_timepoints=scan.header.n_timepoints)
                contract = volume_contract(scan.grid, stored_name(scan.header.dtype, None), scan.header.n_timepoints)
                violations = set(contract.read_back(Path(folder) / "copy.nii").violations)
                if violations - {NOT_FINITE}:
                    raise AssertionError(f"the copy violates its contract: {violations}")
                passed += 1
            except InputError as error:
                refused += 1
                if str(error).count("\n") or folder in str(error):
                    raise AssertionError(f"no message: {error}") from error
            slowest = max(slowest, time.perf_counter() - begun)
    sys.stdout.write(json.dumps({"refused": refused, "passed": passed, "slowest": slowest, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
