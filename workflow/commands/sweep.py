"""`voxlift sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from workflow.commands.options import Overrides
from workflow.terminal.console import JsonOption, screen


def sweep(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file with a section sweep.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the trainings; runs/CONFIG by default.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Trainings at a time, if the cluster has room.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Run only what is missing.")] = False,
    overrides: Overrides = None,
    as_json: JsonOption = False,
) -> None:
    """Train every combination of what the section sweep varies, and compare the trainings."""
    with screen(as_json) as opened:
        # Not at the top: `--help` needs none of what a run loads.
        from workflow.train.sweep import run_sweep, summary

        folder = (out or Path("runs") / Path(config).stem).resolve()
        report = run_sweep(config, overrides or [], folder, parallel=parallel, resume=resume, console=opened.console)
        opened.show(report, *summary(report))
    failed = [child for child in report.children if child.status == "failed"]
    for child in failed:
        typer.echo(f"voxlift: training {child.number} ({', '.join(child.settings)}) failed: {child.error}", err=True)
    if failed:
        raise typer.Exit(1)
