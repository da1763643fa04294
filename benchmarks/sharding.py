"""Speed and memory of restoration: `python -m benchmarks.sharding [network] [ray] [large] [--small] [--against DIR]`.

All three by default; `--small` takes a volume of an eighth for `large`, to try it; `--against` names a checkout of an
earlier version, which does the same job of `large` in the same run.

- network: a 192x224x192 grid through the network, against the same Keras model called once on the whole, and against
  MONAI's sliding window with the same weights in PyTorch; each in a process of its own, two threads each.
- ray: one job of 30 s or more with one worker, against the same Keras model called once per volume.
- large: a 300x370x316 volume of int16 super-resolved 2x, `.nii.gz` both ways: streamed under budgets of 1000, 2000
  and 4000 MiB, and under 2000 MiB in boxes too, as before streams (`benchmarks/boxes.py`).

MONAI and PyTorch go into an environment of their own, `.bench`. Writes `results/sharding.json` and
`results/sharding.md`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.keras_speed import GRID, THREADS
from benchmarks.volumes import RESULTS, hardware, like_a_scan
from configs.axes import FileShape
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_volume

ROOT = Path(__file__).parents[1]
PEER = ROOT / ".bench"
PEER_PACKAGES = ("torch==2.13.0", "monai==1.6.1")
BUDGET = 2000  # the default of the command
TIGHT_BUDGET = 300  # in which the grid is streamed
BUDGETS = (1000, 2000, 4000)
ROUNDS = 2
VOLUMES = 80  # for a job of half a minute
Row = dict[str, Any]


def network(model: Path) -> list[Row]:
    keras = (sys.executable, "-m", "benchmarks.keras_speed")
    contestants = {
        "whole": (*keras, "whole", model),
        "ours": (*keras, "sharded", model, BUDGET),
        "tight": (*keras, "sharded", model, TIGHT_BUDGET),
        "peer": (peer_python(), ROOT / "benchmarks/monai_speed.py", model),
    }
    # In turns, so that what else the machine does falls on all of them.
    rounds = [{name: measured(*command) for name, command in contestants.items()} for _ in range(ROUNDS)]
    whole, ours, tight, peer = (
        rounds[0][name] | {key: min(turn[name][key] for turn in rounds) for key in rounds[0][name] if "seconds" in key}
        for name in contestants
    )
    checks = [found["check"] for found in (whole, ours, tight, peer)]
    if np.ptp(checks) > 1e-5:
        raise SystemExit(f"the networks do not agree: {checks}")

    def row(name: str, found: dict[str, float], seconds: float) -> Row:
        kept = {"million voxels/s": round(prod(GRID) / seconds / 1e6, 2)}
        ratios = {"to Keras": round(whole["seconds"] / seconds, 2), "to MONAI": round(peer["seconds"] / seconds, 2)}
        memory: Row = {name: round(found[name]) for name in ("mib", "estimated_mib") if name in found}
        return {"what": name, "seconds": round(seconds, 2), **kept, **ratios, **memory}

    return [
        row(f"shards under {BUDGET} MiB ({ours['shards']})", ours, ours["seconds"]),
        row(f"shards under {TIGHT_BUDGET} MiB ({tight['shards']})", tight, tight["seconds"]),
        row("Keras, the whole volume at once", whole, whole["seconds"]),
        row("PyTorch, the whole volume at once", peer, peer["whole_seconds"]),
        row("MONAI sliding window 96x96x96, overlap 0.25, Gaussian", peer, peer["seconds"]),
    ]


def through_ray(model: Path, folder: Path) -> list[Row]:
    """One worker with the threads of the machine, over a queue of volumes, against the network alone."""
    shape = (GRID[2] // 2, GRID[1] // 2, GRID[0] // 2)
    for number in range(VOLUMES):
        write_volume(folder / f"{number}.nii", like_a_scan(shape), Grid(FileShape(*shape), np.eye(4)), dtype="int16")
    whole = measured(sys.executable, "-m", "benchmarks.keras_speed", "whole", model)
    report, _ = upscaled(
        folder / "[0-9]*.nii", model, folder / "out", "--workers", "1", "--cpus-per-worker", str(THREADS)
    )
    alone = whole["seconds"] * VOLUMES
    return [
        {"what": f"Keras, {VOLUMES} volumes one after another", "seconds": round(alone, 1)},
        {
            "what": f"voxlift upscale, {VOLUMES} volumes, one worker",
            "seconds": round(report["seconds"], 1),
            "million voxels/s": round(report["voxels_per_second"] / 1e6, 2),
            "to Keras": round(alone / report["seconds"], 2),
        },
    ]


def large(model: Path, folder: Path, *, small: bool, against: Path | None) -> list[Row]:
    shape = (150, 185, 158) if small else (300, 370, 316)
    source, tiny = folder / "large.nii.gz", folder / "tiny.nii"
    write_volume(tiny, like_a_scan((8, 8, 8)), Grid(FileShape(8, 8, 8), np.eye(4)), dtype="int16")
    idle, _ = upscaled(tiny, model, folder / "tiny", "--workers", "1")
    write_volume(source, like_a_scan(shape), Grid(FileShape(*shape), np.eye(4)), dtype="int16")
    budgets = (300, 400, 600) if small else BUDGETS
    cases = [("boxes", budgets[1]), *(("streams", budget) for budget in budgets)]
    earlier = f"commit {commit(against)}" if against else ""
    if earlier:
        cases.insert(0, (earlier, budgets[1]))
    rows: list[Row] = []
    for what, budget in cases:
        module = "benchmarks.boxes" if what == "boxes" else "workflow"
        out = folder / f"{what.split()[-1]}-{budget}"
        options = ("--workers", str(os.cpu_count()), "--memory-budget", str(budget))
        root = against if against and what == earlier else ROOT
        started = time.perf_counter()
        report, peak = upscaled(source, model, out, *options, module=module, root=root)
        call_seconds = time.perf_counter() - started
        spent = report["timings"]
        (volume,) = report["volumes"]
        busy = report["workers"] * volume["seconds"]
        rows.append(
            {
                "plan": what,
                "budget MiB": budget,
                "volume": "x".join(map(str, shape)),
                "shards": volume["shards"],
                "overhead": round(report["plan"]["overhead"], 2),
                "least budget MiB": report["plan"]["least_budget_mib"],
                "seconds": round(volume["seconds"], 1),
                "from call to end s": round(call_seconds, 1),
                **{f"to {row['plan']}": round(volume["seconds"] / row["seconds"], 2) for row in rows[: len(cases) - 3]},
                "share outside the network": round(1 - spent["network"] / busy, 2),
                **{f"{kind} s": round(seconds, 1) for kind, seconds in spent.items()},
                "idle worker MiB": round(idle["peak_rss_mib"]),
                "peak worker MiB": round(report["peak_rss_mib"]),
                "peak driver MiB": round(peak),
            }
        )
    return rows


def upscaled(
    volumes: Path, model: Path, out: Path, *options: str, module: str = "workflow", root: Path = ROOT
) -> tuple[dict[str, Any], float]:
    """Run the command; its report, and the peak of resident memory of its first process, MiB."""
    command = [sys.executable, "-m", module, "upscale", str(volumes), "--json", "--scale", "2,2,2", "--out", str(out)]
    command += ["--model", str(model), *options]
    if "--memory-budget" not in options:
        command += ["--memory-budget", str(BUDGET)]
    # A store of its own: that of another version may have other tables.
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{out}.db", "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        reported = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(reported)
    return json.loads(reported), peak / 2**20


def measured(*command: object) -> dict[str, float]:
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def commit(checkout: Path) -> str:
    command = ("git", "-C", str(checkout), "rev-parse", "--short", "HEAD")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def peer_python() -> Path:
    python = PEER / "bin" / "python"
    if not python.exists():
        # Not in the environment of the product: PyTorch is no dependency of it.
        subprocess.run([sys.executable, "-m", "virtualenv", "--quiet", str(PEER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    return python


def markdown(results: dict[str, list[Row]]) -> str:
    parts = [f"# Restoration\n\n{hardware()}, {THREADS} threads. Made by `python -m benchmarks.sharding`."]
    for title, rows in results.items():
        keys = list(dict.fromkeys(key for row in rows for key in row))
        lines = [" | ".join(str(row.get(key, "")) for key in keys) for row in rows]
        table = [" | ".join(keys), " | ".join(["---"] * len(keys)), *lines]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {line} |" for line in table))
    return "\n\n".join(parts) + "\n"


def main(wanted: list[str], *, small: bool, against: Path | None) -> None:
    RESULTS.mkdir(exist_ok=True)
    kept = RESULTS / "sharding.json"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    # What was measured elsewhere does not stand next to what is measured here.
    results: dict[str, list[Row]] = before["results"] if before.get("hardware") == hardware() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "restorer.keras"
        measured(sys.executable, "-m", "benchmarks.keras_speed", "make", model)
        if "network" in wanted:
            results[f"Network, {'x'.join(map(str, GRID))} voxels"] = network(model)
        if "ray" in wanted:
            results["Through Ray"] = through_ray(model, folder)
        if "large" in wanted:
            results["A large volume, file to file"] = large(model, folder, small=small, against=against)
    kept.write_text(json.dumps({"hardware": hardware(), "results": results}, indent=2) + "\n")
    (RESULTS / "sharding.md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["network", "ray", "large"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--against", type=Path)
    given = parser.parse_args()
    main(given.parts, small=given.small, against=given.against)
