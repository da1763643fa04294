"""Restoration and training on a GPU: `python -m benchmarks.gpu [--small]`, at most 8 minutes.

- network: a 192x224x192 grid on the device, by Keras' layers and by the forms that the device computes faster, and
  through the restorer from host memory to host memory, and as a shard from the scan to its core and the core's
  part of the comparison with the scan, in each precision; a process each.
- peer: the same through MONAI's sliding window, 1, 4 and 8 windows at a time, with the same weights in PyTorch; left
  out where neither `.bench` nor this Python nor `python3` has both, which a line then says.
- files: twenty volumes of 181x217x181 refined 2x in float32, two in each other precision, `.nii.gz` both ways, and
  once more: the bytes must agree.
- training: 2000 steps of `iso2x`, in full precision and in bfloat16, and 300 with eight patches of 32x96x96 a step,
  with the share of the time that waits for patches.

`--small` takes a quarter of each axis and few steps, to try it on CPUs; it writes nothing. Otherwise writes
`results/gpu.json` and `results/gpu.md`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sharding import PEER
from benchmarks.volumes import RESULTS, hardware, like_a_scan, seconds
from configs.axes import FileShape, NetworkShape, triple
from configs.degradation import AxisDegradation, Degradation
from configs.precision import Precision
from tasks.machine.gpus import cards
from tasks.volume.grid import Grid, network_axes
from tasks.volume.nifti import write_volume

ROOT = Path(__file__).parents[1]
GRID, SCAN, VOLUMES, STEPS = (192, 224, 192), (181, 217, 181), 20, 2000
LIMIT = 200  # seconds of one process
Row = dict[str, Any]


def network(path: Path, precision: Precision, grid: tuple[int, int, int]) -> Row:
    """Measure the network in one precision, in this process."""
    import tensorflow as tf

    from models.network.phases import with_phases
    from models.network.precision import in_bfloat16
    from tasks.artifacts.network_file import read_network
    from tasks.artifacts.saved_models import load_model
    from tasks.machine.devices import device_kind, device_name, precision_of_convolutions
    from tasks.sharding.comparison import Comparison
    from tasks.sharding.plan import Shard
    from tasks.sharding.restore import CoarseVolume, Restorer
    from tasks.volume.intensity import Intensity

    file, threads = read_network(path), os.cpu_count() or 1
    volume, rate = np.random.default_rng(0).random(grid, np.float32), prod(grid) / 1e6
    restorer = Restorer(file.name, file.content, threads, precision=precision)
    restorer.restored(volume, Intensity(0, 1))
    row: Row = {"device": device_name(), "precision": precision, "TensorFlow": tf.__version__}
    row["host to host"] = round(rate / seconds(lambda: restorer.restored(volume, Intensity(0, 1))), 2)
    coarse, whole = volume[::2, ::2, ::2].copy(), triple((0, size) for size in grid)

    halved = AxisDegradation(factor=2)
    recipe = Degradation(name="mean", depth=halved, height=halved, width=halved)
    comparison = Comparison(recipe, network_axes(Grid(FileShape(*coarse.shape), np.eye(4))))

    def shard() -> None:
        scan = CoarseVolume(coarse, NetworkShape(*grid), Intensity(0, 1), comparison=comparison)
        restorer(scan, Shard(whole, whole))

    shard()
    row["scan to core"] = round(rate / seconds(shard), 2)

    plain = load_model(path)
    plain = in_bfloat16(plain) if precision == "bfloat16" else plain
    batch = tf.constant(volume[None, ..., None])
    answers = {}
    for name, model in {"Keras' layers": plain, "as restored": with_phases(plain, device_kind())}.items():
        compute = tf.function(lambda batch, model=model: model(batch, training=False), jit_compile=False)

        def once(compute: Any = compute, batch: Any = batch) -> Any:  # noqa: ANN401 - TensorFlow has no types
            answer = compute(batch)
            float(answer[0, 0, 0, 0, 0])  # waits for the device
            return answer

        with precision_of_convolutions(precision):
            answers[name] = once().numpy()
            row[name] = round(rate / seconds(once), 2)
    row["check"] = float(
        answers["as restored"][0, ..., 0][tuple(slice(side // 2, side // 2 + 4) for side in grid)].mean()
    )
    row["difference"] = float(np.abs(answers["as restored"] - answers["Keras' layers"]).max())
    return row


def peer(model: Path, grid: tuple[int, ...]) -> list[Row]:
    """Measure MONAI next to ours, by the first Python that has it; a row that says why where none has."""
    lacking = []
    pythons: dict[str, Path | str | None]
    pythons = {".bench": PEER / "bin" / "python", "this Python": sys.executable, "python3": shutil.which("python3")}
    for name, python in pythons.items():
        if python is None or not Path(python).exists():
            lacking.append(f"{name}: not there")
            continue
        tried = subprocess.run([python, "-c", "import torch, monai"], capture_output=True, text=True, check=False)
        if tried.returncode:
            lacking.append(f"{name}: {(tried.stderr.strip() or 'no answer').splitlines()[-1]}")
            continue
        try:
            found = json_of([python, ROOT / "benchmarks" / "monai_speed.py", model, *grid])
        except (SystemExit, subprocess.TimeoutExpired) as failure:
            return [shown({"left out": str(failure).strip().splitlines()[-1]})]
        versions = {"PyTorch": found["torch"], "MONAI": found["MONAI"]}
        return [shown(row | versions) for row in found["rows"]]
    return [shown({"left out": f"no Python here has PyTorch and MONAI ({'; '.join(lacking)})"})]


def ratios(ours: list[Row], peers: list[Row]) -> list[Row]:
    """Divide the restorer's voxels a second, host to host, by the best of MONAI's in the same precision."""
    best = {
        row["precision"]: max(value for key, value in row.items() if key.startswith("MONAI, "))
        for row in peers
        if "precision" in row
    }
    return [
        {"precision": row["precision"], "to the best of MONAI": round(row["host to host"] / best[row["precision"]], 2)}
        for row in ours
        if row["precision"] in best
    ]


def files(model: Path, folder: Path, precision: Precision, shape: tuple[int, int, int], count: int) -> Row:
    """Refine volumes by the command, twice."""
    inputs = folder / f"{count} scans"
    if not inputs.exists():
        inputs.mkdir()
        voxels = like_a_scan(shape)
        for number in range(count):
            name = inputs / f"{number}.nii.gz"
            write_volume(name, np.roll(voxels, number, 0), Grid(FileShape(*shape), np.diag([1.0] * 4)), dtype="int16")
    rows, digests = [], set()
    for turn in range(2):
        out = folder / f"{precision}-{turn}"
        begun = time.perf_counter()
        report = voxlift(
            *("upscale", inputs, "--out", out, "--model", model, "--scale", "2", "--no-qc", "--precision", precision)
        )
        took = time.perf_counter() - begun
        digests.add(tuple(volume["sha256"] for volume in report["volumes"]))
        rows.append({"seconds": round(took, 1), "Mvoxel/s": round(count * prod(shape) * 8 / took / 1e6, 2)})
    spent = {f"{name} [s]": round(value, 1) for name, value in report["timings"].items()}
    row = {
        "volumes": count,
        "precision": precision,
        **rows[-1],
        **spent,
        "on": ", ".join(report["devices"]),
        "same bytes": len(digests) == 1,
        "PSNR against float32": report["volumes"][0]["precision_psnr"],
    }
    return shown(row)


def training(folder: Path, name: str, *settings: str) -> Row:
    """Train by the command."""
    options = [word for setting in settings for word in ("--set", setting)]
    row: Row = {"training": name}
    try:
        report = voxlift("train", "iso2x", "--out", folder / name, *options)
    except SystemExit as failure:  # a precision that does not train is a finding too
        return shown(row | {"failed": str(failure).strip().splitlines()[-1]})
    kept = ("seconds", "waiting_share", "device", "validation_psnr")
    return shown(row | {key: report.get(key, "") for key in kept})


def voxlift(*words: object) -> Row:
    """Run a command in this folder's store; returns its report."""
    return printed("-m", "workflow", *words, "--json")


def printed(*words: object) -> Row:
    """Run Python; returns the JSON object that it prints last, or why there is none."""
    return json_of([sys.executable, *words])


def json_of(command: Sequence[object]) -> Row:
    """Run a command; returns the JSON object that it prints last."""
    words = list(map(str, command))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: Row = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def shown(row: Row) -> Row:
    print(json.dumps(row), file=sys.stderr, flush=True)  # as it is measured
    return row


def table(rows: list[Row]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, ["---"] * len(keys), *([row.get(key, "") for key in keys] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main(*, small: bool) -> None:
    share = 4 if small else 1
    grid, shape = (tuple(size // share // 16 * 16 for size in GRID), tuple(size // share for size in SCAN))
    precisions: list[Precision] = ["float32", "tf32", "bfloat16"] if cards() else ["float32", "bfloat16"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        model = folder / "restorer.keras"
        printed("-m", "benchmarks.keras_speed", "make", model)
        steps, large = (6, "training.patch=[16,32,32]") if small else (STEPS, "training.patch=[32,96,96]")
        length = f"training.steps={steps}"
        sizes = "x".join(map(str, grid))
        ours = [shown(printed("-m", "benchmarks.gpu", "--network", model, each, *grid)) for each in precisions]
        peers = peer(model, grid)
        results = {
            f"Network, {sizes} voxels, million voxels a second": ours,
            f"MONAI, {sizes} voxels, million voxels a second, host to host": peers,
            "The restorer, host to host, in its precision": ratios(ours, peers),
            f"Volumes of {'x'.join(map(str, shape))} by 2x, file to file": [
                files(model, folder, each, (shape[0], shape[1], shape[2]), 2 if small or each != "float32" else VOLUMES)
                for each in precisions
            ],
            f"Training, {steps} steps": [
                training(
                    folder, "full precision", length, "training.mixed_precision='off'", *([large] if small else [])
                ),
                training(folder, "bfloat16", length, "training.mixed_precision=bfloat16", *([large] if small else [])),
                training(folder, "batch of 8", f"training.steps={min(steps, 300)}", "training.batch_size=8", large),
            ],
        }
    made = f"{hardware()}, {datetime.now(UTC):%Y-%m-%d}. Made by `python -m benchmarks.gpu`."
    text = (
        "\n\n".join([f"# GPU\n\n{made}", *(f"## {title}\n\n{table(rows)}" for title, rows in results.items() if rows)])
        + "\n"
    )
    print(text)
    if not small:
        (RESULTS / "gpu.json").write_text(json.dumps({"hardware": hardware(), "results": results}, indent=2) + "\n")
        (RESULTS / "gpu.md").write_text(text)


if __name__ == "__main__":
    if "--network" in sys.argv:
        _, _, path, precision, *sides = sys.argv
        depth, height, width = map(int, sides)
        print(json.dumps(network(Path(path), precision, (depth, height, width))))  # type: ignore[arg-type]
    else:
        main(small="--small" in sys.argv)
