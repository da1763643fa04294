"""`voxlift sync`."""

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import InputError
from workflow.terminal.console import JsonOption, exit_on_failures, screen


def sync(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of outputs, with all below; the working directory by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Upload to the tracking store what could not be recorded while it was away."""
    given = folders or [Path()]
    with screen(as_json) as opened:
        for folder in given:
            if not folder.is_dir():
                raise InputError(f"Cannot upload records of {folder}: there is no such folder.")
        from workflow.terminal.progress import waiting

        with waiting(opened.console, "Uploading records"):
            from workflow.tracking import upload

            done = upload.upload_below(given)
        opened.show(done, upload.summary(done))
    exit_on_failures(done.waiting, 1)
