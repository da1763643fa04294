"""Size of the QC page of a large volume and time to open it: `python -m benchmarks.quality_page [VOXELS]`.

Makes the page of an output of 512x512x512 voxels, or so many along each axis, and opens it from disk in a headless
Chromium, which draws without a graphics card: from the start of the navigation until the viewer shows both of its
layers and the first frame is drawn. Exits with 1 where the shortest of three tries is over 5 s. Writes
`results/quality_page.json` and `results/quality_page.md`.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.volumes import RESULTS, hardware
from configs.axes import FileShape
from tasks.imaging.resample import resample
from tasks.volume.grid import Grid, covering_grid
from workflow.pages.quality import QualityCase, write_quality_page

ALLOWED_SECONDS = 5.0
READY = "opened.then(() => new Promise(requestAnimationFrame)).then(() => performance.now())"


def large_case(size: int) -> QualityCase:
    """Make a case of smooth regions in a ball of foreground with noise of 1 %, twice as fine as its input."""
    random = np.random.default_rng(0)
    coarse = FileShape(*(size // 2,) * 3)
    regions = gaussian_filter(random.normal(size=(32, 32, 32)), 1.5).astype(np.float32)
    places = np.linspace(-1, 1, 32)
    ball = sum(axis**2 for axis in np.meshgrid(places, places, places, sparse=True)) < 0.7
    regions = np.where(ball, 0.5 + 0.4 * np.sign(regions), 0).astype(np.float32)
    grid = Grid(FileShape(*(size,) * 3), np.diag([0.5, 0.5, 0.5, 1.0]))
    before = resample(resample(regions, coarse), grid.shape)
    restored = before + np.float32(0.01) * random.standard_normal(grid.shape, np.float32)
    return QualityCase(
        title="a large volume",
        input_grid=covering_grid(grid, coarse),
        grid=grid,
        before=before,
        restored=restored,
        strides=FileShape(16, 16, 8),
        borders=[(axis, place) for axis in range(3) for place in range(128, size, 128)],
        consistency=np.float32(0.01) * random.standard_normal(coarse, np.float32),
        noise=0.01,
    )


def seconds_to_open(page: Path, tries: int) -> list[float]:
    """Open a page so often, each time in a browser of its own."""
    from tests.browser import browser

    taken = []
    for _ in range(tries):
        with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as tab:
            tab.open(page)
            taken.append(round(tab.run(READY) / 1000, 2))
            if tab.errors:
                sys.exit(f"the page has errors: {tab.errors}")
    return taken


def measured(size: int, tries: int) -> dict[str, Any]:
    """Write and open the page of a volume of so many voxels along each axis."""
    case = large_case(size)
    with tempfile.TemporaryDirectory() as folder:
        page, began = Path(folder) / "quality.html", time.perf_counter()
        write_quality_page(page, case)
        written = time.perf_counter() - began
        del case
        load = os.getloadavg()[0]
        taken = seconds_to_open(page, tries)
        return {
            "voxels": f"{size}x{size}x{size}",
            "MB": round(page.stat().st_size / 1e6, 1),
            "s to write": round(written, 1),
            "s to open": min(taken),
            "all tries": ", ".join(map(str, taken)),
            "load": round(load, 1),
        }


def main() -> None:
    row = measured(size=int(sys.argv[1]) if sys.argv[1:] else 512, tries=3)
    table = [list(row), ["---:"] * len(row), row.values()]
    lines = "\n".join(f"| {' | '.join(map(str, line))} |" for line in table)
    text = f"# QC page\n\n{hardware()}. Made by `python -m benchmarks.quality_page`.\n\n{lines}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quality_page.json").write_text(json.dumps({"hardware": hardware(), **row}, indent=2) + "\n")
    (RESULTS / "quality_page.md").write_text(text)
    print(text)
    sys.exit(row["s to open"] > ALLOWED_SECONDS)


if __name__ == "__main__":
    main()
