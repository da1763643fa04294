"""`voxlift inspect`: volumes as they are understood, before any work."""

from typing import Annotated

import typer

from tasks.files.selection import expand_inputs
from workflow.commands.options import Volumes, three_numbers
from workflow.terminal.console import JsonOption, exit_on_failures, screen


def inspect(
    volumes: Volumes,
    scale: Annotated[str | None, typer.Option(help="N or I,J,K: show the target grid of this scale.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="MM or I,J,K: show the target grid of this spacing, in mm.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check volumes to their last byte and show their geometry as understood."""
    with screen(as_json) as opened:
        from workflow.inspection import inspect_volumes, inspection_tables

        wanted = three_numbers(scale, "--scale"), three_numbers(spacing, "--spacing")
        inspected = inspect_volumes(expand_inputs(volumes), *wanted)
        opened.show({"volumes": [one.record for one in inspected]}, *inspection_tables(inspected))
    exit_on_failures((one.error for one in inspected if one.error), 2)
