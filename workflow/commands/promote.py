"""`voxlift promote`: the challenger of a registered model against its champion."""

from typing import Annotated

import typer

from workflow.terminal.console import JsonOption, screen


def promote(
    name: Annotated[str, typer.Argument(help="Of the registered model.")],
    references: Annotated[
        list[str], typer.Argument(help="Fine volumes that neither model was trained on: files, folders, globs, lists.")
    ],
    degradation: Annotated[str, typer.Option(help="What makes the coarse volumes.")] = "iso2x",
    experiment: Annotated[str, typer.Option(help="Where the comparison is recorded.")] = "voxlift",
    workers: Annotated[int, typer.Option(min=1, help="Ray workers.")] = 2,
    memory_budget: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="What a worker may take for a shard.")
    ] = 2000,
    as_json: JsonOption = False,
) -> None:
    """Compare challenger and champion on the same references; the challenger is champion if it is no worse."""
    with screen(as_json) as opened:
        from configs.degradation import named_degradation
        from configs.schema import Resources
        from tasks.files.selection import expand_inputs
        from workflow.evaluate import promotion

        resources = Resources(workers=workers, memory_budget_mib=memory_budget)
        recipe = named_degradation(degradation)
        done = promotion.promote(name, expand_inputs(references), recipe, resources, experiment, opened.console)
        opened.show(done, *promotion.promotion_table(done))
