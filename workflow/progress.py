"""Progress bars with time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar while the block runs.

    Args:
        console: Where it is shown.
        title: What is being done.
        total: Steps until it is done.

    Yields:
        Call it after each step, with what is to be read beside the bar.
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

        def advance(remark: str) -> None:
            progress.update(task, advance=1, remark=remark)

        yield advance
