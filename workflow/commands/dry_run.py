"""`voxlift dry-run`: the checks before a run."""

from pathlib import Path
from typing import Annotated

import typer

from workflow.commands.options import Config, Overrides, Spacing, three_numbers
from workflow.terminal.console import JsonOption, exit_on_failures, screen


def dry_run(
    config: Config,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[VOLUME]...", help="More volumes, as after --input.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="VOLUME", help="Volumes to restore: files, folders, globs or lists."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model that restores them: a .keras file, a folder, or a models:/ or runs:/ URI.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/CONFIG by default.")] = None,
    scale: Annotated[str | None, typer.Option(help="N or I,J,K: target voxels per voxel, in the file's axes.")] = None,
    spacing: Spacing = None,
    overrides: Overrides = None,
    as_json: JsonOption = False,
) -> None:
    """Check all that a run needs, take one training step and restore one shard, and discard both."""
    with screen(as_json) as opened:
        from workflow.terminal.progress import waiting

        with waiting(opened.console, "Loading voxlift"):
            from workflow.checks.dry_run import DryRunOptions, dry_run
            from workflow.checks.report import checks_table

        options = DryRunOptions(
            config,
            out or Path("runs") / Path(config).stem,
            settings=overrides or (),
            inputs=[*(inputs or []), *(more or [])],
            model=model,
            scale=three_numbers(scale, "--scale"),
            spacing=three_numbers(spacing, "--spacing"),
        )
        report = dry_run(options, opened.console)
        untried = report.faults and report.estimates.seconds_per_step is None
        opened.show(report, checks_table(report, "; nothing was tried beyond them" if untried else ""))
    exit_on_failures(report.faults, 2)
