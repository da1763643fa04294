"""`voxlift evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from tasks.files.selection import expand_inputs
from workflow.commands.options import AsImages, MemoryBudget, Workers, resources_of
from workflow.terminal.console import JsonOption, exit_on_failures, screen


def evaluate(
    references: Annotated[list[str], typer.Argument(help="Fine volumes: files, folders, globs or lists of paths.")],
    model: Annotated[
        str | None,
        typer.Option(help="A .keras file, a folder, or a models:/ or runs:/ URI; by default the weights that ship."),
    ] = None,
    degradation: Annotated[str | None, typer.Option(help="Name of a degradation; the model's own by default.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Volume whose nonzero voxels are scored, instead of the foreground.")
    ] = None,
    kind: AsImages = None,
    workers: Workers = 2,
    memory_budget: MemoryBudget = 2000,
    as_json: JsonOption = False,
) -> None:
    """Degrade volumes, restore them, and score them next to trilinear, cubic and corrected cubic interpolation."""
    with screen(as_json) as opened:
        from workflow.terminal.progress import waiting

        with waiting(opened.console, "Loading voxlift"):
            from workflow.evaluate import evaluation

        network, recipe = evaluation.network_and_recipe(model, degradation)
        resources = resources_of(workers, memory_budget)
        sources = expand_inputs(references)
        report = evaluation.recorded_evaluation(
            sources, network, recipe, resources, mask, opened.console, as_images=kind == "image"
        )
        opened.show(report, *evaluation.summary(report))
    wrong = not report.scored and all(one.cause == "input" for one in report.failed)
    exit_on_failures((one.error for one in report.failed), 2 if wrong else 1)
