"""`voxlift doctor`: what works on this machine, with the remedy for what does not."""

from pathlib import Path
from typing import Annotated

import typer

from workflow.terminal.console import JsonOption, screen


def doctor(
    constraints: Annotated[
        Path | None, typer.Option(help="File of pinned versions; constraints.txt of the checkout by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Try what runs need: packages, TensorFlow, Ray, MLflow, disk, sharding; say what is wrong and how to fix it."""
    with screen(as_json) as opened:
        from workflow.terminal.progress import waiting

        with waiting(opened.console, "Trying everything, about 20 s"):
            from workflow.checks.doctor import CONSTRAINTS, run_doctor
            from workflow.checks.report import checks_table

            diagnosis = run_doctor(constraints or CONSTRAINTS)
        opened.show(diagnosis, checks_table(diagnosis))
    if not diagnosis.ok:
        raise typer.Exit(1)
