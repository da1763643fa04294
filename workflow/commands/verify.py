"""`voxlift verify`: check artifacts against their contracts."""

from typing import Annotated

import typer

from workflow.terminal.console import JsonOption, exit_on_failures, screen


def verify(
    run_or_folder: Annotated[str, typer.Argument(help="A run id, or a folder with a contracts.json.")],
    as_json: JsonOption = False,
) -> None:
    """Check every artifact of a run or folder again: content, shape, type and spacing."""
    with screen(as_json) as opened:
        from workflow.terminal.progress import waiting

        with waiting(opened.console, "Reading every artifact"):
            from workflow.tracking import verification

            found = verification.verify(run_or_folder)
        opened.show(found, verification.verdict(found))
    exit_on_failures(found.damages, 2)
