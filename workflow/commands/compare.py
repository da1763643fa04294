"""`voxlift compare`: runs side by side."""

from pathlib import Path
from typing import Annotated

import typer

from workflow.terminal.console import JsonOption, screen

CURVE = "train/loss"
CURVES = 12


def compare(
    experiment: Annotated[str, typer.Option(help="Name of the MLflow experiment.")] = "voxlift",
    runs: Annotated[str | None, typer.Option(metavar="A,B", help="Ids or names of runs, instead of all.")] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Best first: psnr, ssim, seconds/training …")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a CSV file, a picture and an HTML page.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between runs, their scores next to the baselines, time and size."""
    with screen(as_json) as opened:
        from dataclasses import asdict

        from workflow.evaluate import comparison
        from workflow.pages import comparison as comparison_page
        from workflow.tracking.reading import read_curves, read_runs

        found = comparison.compare(read_runs(experiment, runs.split(",") if runs else ()), sort)
        files: list[Path] = []
        if out is not None:
            curves = read_curves([row.run_id for row in found.rows[:CURVES]], CURVE)
            files = comparison_page.write_comparison(out, found, curves, CURVE)
        tables = comparison_page.comparison_table(found)
        opened.show({**asdict(found), "files": files}, *tables, *map(str, files))
