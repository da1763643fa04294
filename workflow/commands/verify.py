"""`voxlift verify`: check artifacts against their contracts."""

from typing import Annotated

import typer

from workflow.terminal.console import JsonOption, screen


def verify(
    run_or_folder: Annotated[str, typer.Argument(help="A run id, or a folder with a contracts.json.")],
    as_json: JsonOption = False,
) -> None:
    """Check every artifact of a run or folder again: content, shape, type and spacing."""
    with screen(as_json) as opened:
        # Not at the top: `--help` needs none of what a run loads.
        from workflow.tracking import verification

        found = verification.verify(run_or_folder)
        opened.show(found, verification.verdict(found))
    for damage in found.damages:
        typer.echo(f"voxlift: {damage}", err=True)
    if found.damages:
        raise typer.Exit(2)
