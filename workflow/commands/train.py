"""`voxlift train`."""

from pathlib import Path
from typing import Annotated

import typer

from workflow.commands.options import Config, Overrides, Overwrite, require_one_of
from workflow.terminal.console import JsonOption, screen


def train(
    config: Config,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; runs/CONFIG by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint in the folder.")] = False,
    replicas: Annotated[int | None, typer.Option(min=1, help="Same as --set training.replicas=N.")] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Start from the weights of a .keras file, a folder, or a models:/ or runs:/ URI."
        ),
    ] = None,
    overwrite: Overwrite = False,
    overrides: Overrides = None,
    as_json: JsonOption = False,
) -> None:
    """Train a restorer under MirroredStrategy and record it in MLflow."""
    with screen(as_json) as opened:
        from workflow.terminal.progress import resumable, waiting

        with waiting(opened.console, "Loading voxlift"):
            from configs.load import load_config
            from workflow.tracking import resolve_model
            from workflow.train.run import CHECKPOINTS, run_train, summary

        require_one_of(resume=resume, overwrite=overwrite)
        settings = [*(overrides or []), *([f"training.replicas={replicas}"] if replicas else [])]
        folder = out or Path("runs") / Path(config).stem
        initial = resolve_model(start_from) if start_from else None
        with resumable(opened.console, lambda: f"The checkpoints are in {(folder / CHECKPOINTS).resolve()}."):
            report = run_train(
                load_config(config, settings),
                folder,
                resume=resume,
                overwrite=overwrite,
                start_from=initial,
                console=opened.console,
            )
        opened.show(report, *summary(report))
