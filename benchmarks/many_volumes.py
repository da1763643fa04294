"""Memory and open files of the driver over many volumes: `python -m benchmarks.many_volumes [COUNT]`.

Runs `voxlift upscale` on 500 volumes of 24x24x24, or so many, and samples its process whenever ten outputs more are
there. Exits with 1 where the memory at the end is 64 MiB more than after the first ten, or more files are open.
Writes `results/many_volumes.json` and `results/many_volumes.md`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.volumes import RESULTS, hardware

ROOT = Path(__file__).parents[1]
ALLOWED_MIB = 64.0
ALLOWED_FILES = 4  # connections of the store and of Ray come and go
EVERY = 10  # outputs


def sampled(count: int, folder: Path) -> list[dict[str, Any]]:
    """Super-resolve volumes; returns what the driver took by the number of outputs."""
    from tests.workflow.small_upscaling import SmallUpscaling

    small = SmallUpscaling(folder, count, (24, 24, 24)).prepare()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"MLFLOW_TRACKING_URI": small.store, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "workflow", *small.command("out", "--workers", "1")]
    rows: list[dict[str, Any]] = []
    with (
        (folder / "report.json").open("w") as report,
        subprocess.Popen(command, env=environment, stdout=report) as process,
    ):
        driver, began = psutil.Process(process.pid), time.monotonic()
        while process.poll() is None:
            time.sleep(0.05)
            pages = len(list((folder / "out").glob("[!.]*_quality.html")))  # the last file of a volume
            if pages >= EVERY * (len(rows) + 1):
                memory = driver.memory_info().rss / 2**20
                rows.append(
                    {
                        "outputs": pages,
                        "memory_mib": round(memory, 1),
                        "open_files": driver.num_fds(),
                        "seconds": round(time.monotonic() - began, 1),
                    }
                )
    if process.returncode:
        sys.exit(f"voxlift ended with {process.returncode}")
    failed = [volume for volume in json.loads((folder / "report.json").read_text())["volumes"] if volume["error"]]
    if failed:
        sys.exit(f"{len(failed)} volumes failed")
    return rows


def main() -> None:
    count = int(sys.argv[1]) if sys.argv[1:] else 500
    with tempfile.TemporaryDirectory() as folder:
        rows = sampled(count, Path(folder))
    first, last = rows[0], rows[-1]
    grown, opened = last["memory_mib"] - first["memory_mib"], last["open_files"] - first["open_files"]
    shown = [row for row in rows if row is first or row is last or not row["outputs"] % 100]
    lines = [list(first), ["---:"] * len(first), *(list(row.values()) for row in shown)]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    verdict = (
        f"From output {first['outputs']} to {last['outputs']}: {grown:+.1f} MiB ({ALLOWED_MIB:g} allowed),"
        f" {opened:+d} open files ({ALLOWED_FILES} allowed)."
    )
    text = f"# Many volumes\n\n{hardware()}. Made by `python -m benchmarks.many_volumes`.\n\n{table}\n\n{verdict}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "many_volumes.json").write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=2) + "\n")
    (RESULTS / "many_volumes.md").write_text(text)
    print(text)
    sys.exit(grown > ALLOWED_MIB or opened > ALLOWED_FILES)


if __name__ == "__main__":
    main()
