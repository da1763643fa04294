"""Compare the estimates of `voxlift dry-run` with what runs take: `python -m benchmarks.dry_run [PRESET...]`.

Of the demo the whole run, of a preset its training. Other work on the machine between the two shows as a miss. Writes
`results/dry_run.json` and `results/dry_run.md`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.volumes import RESULTS, hardware

ROOT = Path(__file__).parents[1]
PRESETS = ("demo", "iso2x", "thick4x")
Row = dict[str, Any]


def measured(preset: str) -> list[Row]:
    """One row for each estimate."""
    with tempfile.TemporaryDirectory() as folder:
        rehearsed, took = run(folder, "dry-run", preset)
        real, total = run(folder, *(["demo"] if preset == "demo" else ["train", preset]))
    estimates = rehearsed["estimates"]
    pairs = {"training": (estimates["training_seconds"], (real["training"] if preset == "demo" else real)["seconds"])}
    if preset == "demo":
        pairs["restoring"] = estimates["restoring_seconds"], real["inference"]["seconds"]
        pairs["all"] = estimates["total_seconds"], total
    rows: list[Row] = [
        {"run": preset, "what": f"{what}, s", "estimated": round(before, 1), "taken": round(then, 1)}
        for what, (before, then) in pairs.items()
    ]
    rows += [
        {
            "run": preset,
            "what": f"{what}, MiB",
            "estimated": round(memory["estimated"]),
            "taken": round(memory["measured"]),
        }
        for what, memory in (("replica", estimates["replica_mib"]), ("shard", estimates["shard_mib"]))
    ]
    for row in rows:
        row["ratio"] = round(row["taken"] / row["estimated"], 2)
    return [*rows, {"run": preset, "what": "the dry run itself, s", "taken": round(took, 1)}]


def run(folder: str, *arguments: str) -> tuple[dict[str, Any], float]:
    """Run a command; its report and its time."""
    without = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "MLFLOW_TRACKING_URI"}}
    command = [sys.executable, "-m", "workflow", *arguments, "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=without | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), time.perf_counter() - began


def main(presets: list[str]) -> None:
    rows = [row for preset in presets for row in measured(preset)]
    keys = ("run", "what", "estimated", "taken", "ratio")
    lines = [" | ".join(str(row.get(key, "")) for key in keys) for row in rows]
    table = "\n".join(f"| {line} |" for line in [" | ".join(keys), " | ".join(["---"] * len(keys)), *lines])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "dry_run.json").write_text(json.dumps({"hardware": hardware(), "results": rows}, indent=2) + "\n")
    text = f"# Estimates of the dry run\n\n{hardware()}. Made by `python -m benchmarks.dry_run`.\n\n{table}\n"
    (RESULTS / "dry_run.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:] or list(PRESETS))
