"""`voxlift train`."""

from pathlib import Path
from typing import Annotated

import typer

from workflow.commands.options import Overrides
from workflow.terminal.console import JsonOption, screen


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file or the name of a preset.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the run; runs/CONFIG by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    replicas: Annotated[int | None, typer.Option(min=1, help="Same as --set training.replicas=N.")] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Start from the weights of a .keras file, a folder, or a models:/ or runs:/ URI."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: JsonOption = False,
) -> None:
    """Train a restorer under MirroredStrategy and record it in MLflow."""
    with screen(as_json) as opened:
        # Not at the top: `--help` needs none of what a run loads.
        from configs.load import load_config
        from workflow.tracking import resolve_model
        from workflow.train.report import summary
        from workflow.train.run import run_train

        settings = [*(overrides or []), *([f"training.replicas={replicas}"] if replicas else [])]
        loaded = load_config(config, settings)
        folder = out or Path("runs") / Path(config).stem
        given = resolve_model(start_from) if start_from else None
        report = run_train(loaded, folder, resume=resume, start_from=given, console=opened.console)
        opened.show(report, *summary(report))
