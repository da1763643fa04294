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
        from workflow.terminal.progress import waiting

        wanted = three_numbers(scale, "--scale"), three_numbers(spacing, "--spacing")
        paths = expand_inputs(volumes)
        with waiting(opened.aside, f"Reading {len(paths)} volume{'s' if len(paths) > 1 else ''}", at_once=False):
            from workflow.inspection import inspect_volumes, inspection_tables

            inspected = inspect_volumes(paths, *wanted)
        opened.show({"volumes": [one.record for one in inspected]}, *inspection_tables(inspected))
    exit_on_failures((one.error for one in inspected if one.error), 2)
