"""`voxlift promote`: the challenger of a registered model against its champion."""

from typing import Annotated

import typer

from tasks.files.selection import expand_inputs
from workflow.commands.options import AsImages, MemoryBudget, Workers, resources_of
from workflow.terminal.console import JsonOption, screen


def promote(
    name: Annotated[str, typer.Argument(help="Name of the registered model.")],
    references: Annotated[
        list[str], typer.Argument(help="Fine volumes that neither model was trained on: files, folders, globs, lists.")
    ],
    degradation: Annotated[
        str | None, typer.Option(help="Degradation that makes the coarse volumes; the champion's own by default.")
    ] = None,
    min_references: Annotated[int, typer.Option(min=1, help="Promote nothing on fewer different references.")] = 3,
    experiment: Annotated[str, typer.Option(help="MLflow experiment that records the comparison.")] = "voxlift",
    kind: AsImages = None,
    workers: Workers = 2,
    memory_budget: MemoryBudget = 2000,
    as_json: JsonOption = False,
) -> None:
    """Compare challenger and champion on the same references; the challenger is champion if it is better."""
    with screen(as_json) as opened:
        from workflow.terminal.progress import waiting

        with waiting(opened.console, "Loading voxlift"):
            from configs.degradation import named_degradation
            from workflow.evaluate import promotion

        resources = resources_of(workers, memory_budget)
        recipe = named_degradation(degradation) if degradation is not None else None
        done = promotion.promote(
            name,
            expand_inputs(references),
            recipe,
            resources,
            experiment,
            opened.console,
            min_references,
            as_images=kind == "image",
        )
        opened.show(done, *promotion.promotion_table(done))
