"""A volume larger than memory: `python -m benchmarks.huge [--fraction F]`, the whole by default.

Makes a synthetic uint8 volume of 1024x1024x1024 as OME-Zarr, restores it to 2048x2048x1024 under 2000 MiB a worker with
a network that does not go by the acquisition, kills that with SIGKILL in the middle, resumes it, and restores it once
more without interruption. A fraction takes so much of the voxels; its input stays in its file too, small as it is.
Exits with 1 where the two outputs differ or the driver has taken 1 GiB. Writes `results/huge.json` and
`results/huge.md`, but for a fraction prints alone.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.volumes import RESULTS, hardware
from configs.axes import FileShape
from tasks.files.trees import file_digest, stored_size
from tasks.volume.grid import Grid
from tasks.volume.nifti import slab_writer

ROOT = Path(__file__).parents[1]
SIDE = 1024
SCALE = "2,2,1"
BUDGET = 2000
WORKERS = 2
MAX_DRIVER_MIB = 1024.0
PLANES = 16  # made at once
VOXLIFT = "import workflow.upscale.plan as plan; plan.MAX_HELD_MIB = 0; from workflow.cli import main; main()"


def make_volume(path: Path, shape: FileShape) -> None:
    """Write a synthetic volume: waves in air, with noise."""
    random = np.random.default_rng(0)
    i, j = (np.arange(size, dtype=np.float32)[:, None] for size in shape[:2])
    waves = np.sin(i / 23) @ np.cos(j / 31).T
    with slab_writer(path, Grid(shape, np.diag([0.5, 0.5, 0.5, 1.0])), dtype="uint8") as writer:
        for start in range(0, shape.k, PLANES):
            k = np.arange(start, min(start + PLANES, shape.k), dtype=np.float32)
            slab = 90 + 80 * waves[:, :, None] * np.sin(k / 17)
            writer.write(slab + random.normal(0, 5, slab.shape).astype(np.float32))


def restore(folder: Path, out: str, *options: str, kill_at: float = 0.0) -> dict[str, Any]:
    """Run voxlift; kill it once it has stored so much of its voxels, if that is not 0.

    Returns:
        Seconds, peak memory of the driver and, of a run that ended, its report of the volume.
    """
    command = [sys.executable, "-c", VOXLIFT, "upscale", str(folder / "volume.zarr"), "--out", str(folder / out)]
    command += ["--model", str(folder / "small.keras"), "--scale", SCALE, "--no-correct", "--as", "image", "--json"]
    command += ["--workers", str(WORKERS), "--memory-budget", str(BUDGET), *options]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "PYTHONPATH": str(ROOT)}
    began, peak = time.monotonic(), 0.0
    wanted = kill_at * 4 * np.prod(zarr_shape(folder / "volume.zarr"))  # bytes of its uint8 cores
    with (
        (folder / "report.json").open("w") as report,
        subprocess.Popen(command, env=environment, stdout=report) as process,
    ):
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, peak_mib(process.pid))
            stored = sum(core.stat().st_size for core in folder.glob(".voxlift/*/0/[!.]*.core")) if wanted else 0
            if wanted and stored >= wanted:
                others = driver.children(recursive=True)
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                for other in others:  # Ray's, which would end by themselves some time later
                    with suppress(psutil.NoSuchProcess):
                        other.kill()
                break
            time.sleep(0.1)
    found: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "driver_peak_mib": round(peak)}
    if wanted:
        if process.returncode != -signal.SIGKILL:
            sys.exit("the run had ended before it could be killed")
        return found | {"stored": stored}
    if process.returncode:
        sys.exit(f"voxlift ended with {process.returncode}")
    printed = json.loads((folder / "report.json").read_text())
    (volume,) = printed["volumes"]
    return found | {
        "worker_peak_mib": round(printed["peak_rss_mib"]),
        "shards": volume["shards"],
        "shards_resumed": volume["shards_resumed"],
        "sha256": file_digest(folder / out),
        "output_mib": round(stored_size(folder / out) / 2**20),
    }


def zarr_shape(path: Path) -> list[int]:
    """Return the voxels of the array of a volume that was made here."""
    return list(json.loads((path / "0" / "zarr.json").read_text())["shape"])


def peak_mib(pid: int) -> float:
    """Return the peak of the resident memory of a process, 0 if it has ended."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return 0.0


def main() -> None:
    from tests.networks import small_restorer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fraction", type=float, default=1.0)
    fraction = parser.parse_args().fraction
    side = max(32, round(SIDE * fraction ** (1 / 3)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small_restorer(filters=6).save(folder / "small.keras")  # type: ignore[no-untyped-call]
        make_volume(folder / "volume.zarr", FileShape(side, side, side))
        runs = {
            "killed in the middle": restore(folder, "resumed.zarr", kill_at=0.4),
            "resumed": restore(folder, "resumed.zarr", "--resume"),
            "without interruption": restore(folder, "whole.zarr"),
        }
    same = runs["resumed"]["sha256"] == runs["without interruption"]["sha256"]
    peak = max(run["driver_peak_mib"] for run in runs.values())
    columns = list(runs["resumed"])
    lines = [["run", *columns], ["---"] * (len(columns) + 1)]
    lines += [[run, *(str(values.get(column, ""))[:12] for column in columns)] for run, values in runs.items()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    bytes_are = "the same" if same else "NOT the same"
    verdict = f"The bytes are {bytes_are}; the driver's peak is {peak} MiB ({MAX_DRIVER_MIB:g} allowed)."
    text = f"# {side}x{side}x{side} voxels to {2 * side}x{2 * side}x{side}\n\n{hardware()}.\n\n{table}\n\n{verdict}\n"
    if fraction == 1:
        (RESULTS / "huge.json").write_text(json.dumps({"hardware": hardware(), "runs": runs}, indent=2) + "\n")
        (RESULTS / "huge.md").write_text(text)
    print(text)
    sys.exit(not same or peak > MAX_DRIVER_MIB)


if __name__ == "__main__":
    main()
