"""Volumes: compression, random access, resampling and memory. `python -m benchmarks.volumes`.

Wants `zlib-ng` next to the dependencies (`pip install -c constraints.txt zlib-ng`). Writes `results/volumes.json` and
`results/volumes.md`.
"""

import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from isal import igzip
from numpy.typing import NDArray
from scipy import ndimage

from configs.axes import FileShape
from tasks.files.compression import LEVEL, open_to_write
from tasks.imaging.resample import Interpolation, resample
from tasks.training.template import template_path
from tasks.volume.grid import Grid
from tasks.volume.nifti import open_volume, read_volume, write_volume
from tasks.volume.scan import Scan

RESULTS = Path(__file__).parent / "results"
CHUNK = 4 << 20
ORDERS: tuple[Interpolation, ...] = ("cubic", "linear")
Row = dict[str, Any]


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest of several times: what the machine can do when nobody disturbs it."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def like_a_scan(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """The template on a grid of `shape`, with the noise of a scan inside the foreground: 0 to about 2000."""
    voxels = resample(read_volume(template_path()).voxels, shape, "linear") * 8
    noise = np.random.default_rng(0).normal(0, 12, shape).astype(np.float32)
    scan: NDArray[np.float32] = np.clip(voxels + noise * (voxels > 40), 0, None)
    return scan


def compression(folder: Path) -> list[Row]:
    """Every candidate writes the same int16 voxels."""
    from zlib_ng import gzip_ng

    raw = like_a_scan((300, 340, 290)).astype(np.int16).tobytes(order="F")
    candidates = [
        *(("Python's gzip", gzip.open, level) for level in (1, 6)),
        *(("zlib-ng", gzip_ng.open, level) for level in (1, 2, 6)),
        *(("ISA-L", igzip.open, level) for level in (0, 1, 2, 3)),
    ]
    path = folder / "voxels.gz"

    def through(opener: Callable[..., Any], level: int) -> None:
        with opener(path, "wb", compresslevel=level) as file:
            for start in range(0, len(raw), CHUNK):
                file.write(raw[start : start + CHUNK])

    def ours() -> None:
        with open_to_write(path) as (write, _):
            for start in range(0, len(raw), CHUNK):
                write(raw[start : start + CHUNK])

    def row(name: str, level: int, took: float) -> Row:
        speed = round(len(raw) / 1e6 / took, 1)
        return {"writer": name, "level": level, "MB/s": speed, "size": round(path.stat().st_size / len(raw), 3)}

    rows = [
        row(name, level, seconds(partial(through, opener, level), repeats=1 if level == 6 else 3))
        for name, opener, level in candidates
    ]
    return [*rows, row("ISA-L on a thread (ours)", LEVEL, seconds(ours))]


def random_access(folder: Path) -> list[Row]:
    """Forty slabs of four planes in random order out of one .nii.gz."""
    shape = (256, 256, 240)
    path = folder / "scan.nii.gz"
    write_volume(path, like_a_scan(shape), Grid(FileShape(*shape), np.eye(4)), dtype="int16")
    starts = np.random.default_rng(1).integers(0, shape[2] - 4, 40)
    plane = shape[0] * shape[1] * 2

    def through(opener: Callable[..., Any]) -> Callable[[], None]:
        def read() -> None:
            with opener(path) as opened:
                file = cast("BinaryIO", opened)
                for start in starts:
                    file.seek(352 + int(start) * plane)
                    np.frombuffer(file.read(4 * plane), np.int16).astype(np.float32)

        return read

    def ours(scan: Scan | None = None) -> None:
        scan = scan or open_volume(path)
        for start in starts:
            scan.slab(int(start), int(start) + 4)

    indexed = open_volume(path)
    ours(indexed)

    def in_order() -> None:
        for _ in open_volume(path).slabs():
            pass

    readers: list[tuple[str, Callable[[], None], int]] = [
        ("Python's gzip, 40 slabs", through(gzip.open), 1),
        ("ISA-L, 40 slabs", through(igzip.open), 2),
        ("indexed_gzip (ours), 40 slabs", ours, 2),
        ("indexed_gzip (ours), 40 slabs of a file read before", partial(ours, indexed), 2),
        ("indexed_gzip (ours), all slabs in order", in_order, 2),
    ]
    return [{"reader": name, "seconds": round(seconds(work, repeats), 2)} for name, work, repeats in readers]


def resampling() -> list[Row]:
    """180x216x180 by 2x2x2, against scipy.ndimage.zoom of order 3 on the same grid."""
    voxels = np.random.default_rng(0).random((180, 216, 180), dtype=np.float32)
    target = (360, 432, 360)
    reference = ndimage.zoom(voxels, 2, order=3, mode="nearest", grid_mode=True)
    difference = float(np.abs(resample(voxels, target) - reference).max())
    theirs = seconds(lambda: ndimage.zoom(voxels, 2, order=3, mode="nearest", grid_mode=True), repeats=2)
    cubic, linear = (seconds(partial(resample, voxels, target, order)) for order in ORDERS)
    return [
        {"resampler": "scipy.ndimage.zoom, order 3", "seconds": round(theirs, 2), "times as fast": 1},
        {"resampler": "cubic", "seconds": round(cubic, 2), "times as fast": round(theirs / cubic, 1)},
        {"resampler": "linear", "seconds": round(linear, 2), "times as fast": round(theirs / linear, 1)},
        {"resampler": f"(largest difference of cubic: {difference:.1e})"},
    ]


def memory(folder: Path) -> list[Row]:
    """A 300x370x316 volume of int16, read, resampled by 2x2x2 and written, .nii.gz both ways."""
    shape = (300, 370, 316)
    source = folder / "large.nii.gz"
    write_volume(source, like_a_scan(shape), Grid(FileShape(*shape), np.eye(4)), dtype="int16")
    command = [sys.executable, "-m", "benchmarks.enlarge", str(source), str(folder / "larger.nii.gz")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return [{"volume": "x".join(map(str, shape)), **{key: round(value, 1) for key, value in found.items()}}]


def hardware() -> str:
    """Name the processor and count its cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}"


def markdown(results: dict[str, list[Row]]) -> str:
    """Lay the results out as tables."""
    parts = [f"# Volumes\n\n{hardware()}. Made by `python -m benchmarks.volumes`; shortest of up to three runs."]
    for title, rows in results.items():
        keys = list(rows[0])
        lines = [" | ".join(str(row.get(key, "")) for key in keys) for row in rows]
        table = [" | ".join(keys), " | ".join(["---"] * len(keys)), *lines]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {line} |" for line in table))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = {
            "Compression": compression(folder),
            "Random access": random_access(folder),
            "Resampling": resampling(),
            "Memory": memory(folder),
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "volumes.json").write_text(json.dumps({"hardware": hardware(), **results}, indent=2) + "\n")
    (RESULTS / "volumes.md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
