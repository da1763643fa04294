"""Progress bars with time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Advance(Protocol):
    """Callback after each step."""

    def __call__(self, remark: str, total: int | None = None) -> None:
        """Take a step.

        Args:
            remark: What is to be read next to the bar.
            total: Steps until it is done, if it is another number than before.
        """


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Advance]:
    """Show a bar while the block runs.

    Args:
        console: Where it is shown.
        title: What is being done.
        total: Steps until it is done.

    Yields:
        Call it after each step.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, remark="")

        def advance(remark: str, total: int | None = None) -> None:
            progress.update(task, total=total, advance=1, remark=remark)

        yield advance
