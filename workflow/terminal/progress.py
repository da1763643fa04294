"""Progress bars with time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Advance(Protocol):
    """Callback after each step."""

    def __call__(self, note: str, total: int | None = None) -> None:
        """Advance a step, with a note next to the bar; `total` changes the number of steps."""


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Advance]:
    """Show a bar while the block runs; yields a callback for each of `total` steps."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(note: str, total: int | None = None) -> None:
            progress.update(task, total=total, advance=1, note=note)

        yield advance
