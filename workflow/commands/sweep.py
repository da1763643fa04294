"""`voxlift sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from workflow.commands.options import Overrides, Overwrite, require_one_of
from workflow.terminal.console import JsonOption, exit_on_failures, screen


def sweep(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file with a section sweep.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the trainings; runs/CONFIG by default.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Trainings at a time, if the cluster has room.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Run only the trainings that have not finished.")] = False,
    overwrite: Overwrite = False,
    overrides: Overrides = None,
    as_json: JsonOption = False,
) -> None:
    """Train every combination of what the section sweep varies, and compare the trainings."""
    with screen(as_json) as opened:
        from workflow.terminal.progress import resumable, waiting

        with waiting(opened.console, "Loading voxlift"):
            from workflow.train.sweep import run_sweep, saved, summary

        require_one_of(resume=resume, overwrite=overwrite)
        folder = (out or Path("runs") / Path(config).stem).resolve()
        with resumable(opened.console, lambda: saved(folder)):
            report = run_sweep(
                config,
                overrides or [],
                folder,
                parallel=parallel,
                resume=resume,
                overwrite=overwrite,
                console=opened.console,
            )
        opened.show(report, *summary(report))
    failed = (child for child in report.children if child.status == "failed")
    exit_on_failures((f"training {one.number} ({', '.join(one.settings)}) failed: {one.error}" for one in failed), 1)
