"""`voxlift compare`: runs side by side."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from workflow.terminal.console import JsonOption, screen


def compare(
    experiment: Annotated[str, typer.Option(help="Name of the MLflow experiment.")] = "voxlift",
    runs: Annotated[str | None, typer.Option(metavar="A,B", help="Ids or names of runs, instead of all.")] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Metric to sort by, best first: psnr, ssim, seconds/training …")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a CSV file, a picture and an HTML page.")] = None,
    all_columns: Annotated[
        bool, typer.Option("--all-columns", help="Show every metric and every parameter that differs.")
    ] = False,
    all_runs: Annotated[
        bool, typer.Option("--all-runs", help="Show runs that failed or were killed, and parents of runs, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between runs, their scores next to the baselines, time and size."""
    with screen(as_json) as opened:
        from workflow.terminal.progress import waiting

        with waiting(opened.aside, "Reading runs", at_once=False):
            from workflow.evaluate.comparison import compare_runs, comparison_table

            found, files = compare_runs(experiment, runs.split(",") if runs else (), sort, out, every=all_runs)
        table = comparison_table(found, opened.console.width if all_columns else None)
        opened.show({**asdict(found), "files": files}, *table, *map(str, files))
