"""Output of a command: a table for a person or one JSON object for a program, and the exit status of an error."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, all else on standard error.")
]


class Screen:
    """Output of a command.

    Args:
        console: Receives tables, progress and messages; standard error with `--json`.
        aside: Receives what is no part of the result: standard error where standard output is no terminal.
        json_stream: Receives the JSON object, or None when a person reads.
    """

    def __init__(self, console: "Console", aside: "Console", json_stream: TextIO | None) -> None:
        self.console = console
        self.aside = aside
        self._json_stream = json_stream

    def show(self, result: object, *renderables: "RenderableType") -> None:
        """Show a command's result, once: `result` as JSON, or the `renderables`.

        Args:
            result: A pydantic model, dataclass or plain data.
            renderables: What a person sees instead.
        """
        if self._json_stream is None:
            from rich.table import Table  # noqa: PLC0415 - not for --help

            for renderable in renderables:
                # In a narrow terminal a long name takes several lines; it is never cut.
                for column in renderable.columns if isinstance(renderable, Table) else ():
                    column.overflow = "fold"
                # The terminal wraps lines: a path or a command with a line break in it cannot be copied.
                plain = isinstance(renderable, str)
                self.console.print(renderable, soft_wrap=plain, markup=not plain)
            return
        from pydantic_core import to_json  # noqa: PLC0415 - only for --json

        self._json_stream.write(to_json(result, indent=2, inf_nan_mode="null").decode() + "\n")
        self._json_stream.flush()


def exit_on_failures(failures: Iterable[object], status: int) -> None:
    """Print failures on standard error, one a line, and exit with the status if there are any."""
    messages = [f"voxlift: {failure}" for failure in failures]
    if messages:
        typer.echo("\n".join(messages), err=True)
        raise typer.Exit(status)


@contextmanager
def screen(as_json: bool) -> Iterator[Screen]:  # noqa: FBT001 - one switch, named at every call
    """Open the screen of a command.

    With `as_json`, file descriptor 1 leads to standard error while the command works, so that nothing that a library
    or a child process prints can stand next to the JSON object. An error that ends the command becomes the object
    `{"error": …}`.
    """
    from rich.console import Console  # noqa: PLC0415 - not for --help

    if not as_json:
        console = Console()
        yield Screen(console, console if console.is_terminal else Console(stderr=True), None)
        return
    sys.stdout.flush()
    reserved = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(reserved), "w") as stream:
            console = Console(stderr=True)
            opened = Screen(console, console, stream)
            try:
                yield opened
            except Exception as error:
                opened.show({"error": str(error)})
                raise
    finally:
        sys.stdout.flush()
        os.dup2(reserved, 1)
        os.close(reserved)
