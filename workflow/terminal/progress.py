"""Output while work goes on: what is being waited for, progress bars with time left, and lines in a log."""

import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Entered = TypeVar("Entered")

LINE_SECONDS = 10.0  # between lines where no terminal shows a bar


class Advance(Protocol):
    """Callback after each step."""

    def __call__(self, note: str, total: int | None = None, completed: int | None = None) -> None:
        """Advance a step, or to those completed, with a note next to the bar; `total` changes the number of steps."""


@contextmanager
def waiting(console: Console, doing: str, *, at_once: bool = True) -> Iterator[None]:
    """Show what is waited for, and for how long, while the block runs; every few seconds where there is no terminal.

    Args:
        console: Receives it.
        doing: A clause, such as "Starting Ray".
        at_once: Whether the first line comes at once where there is no terminal; it always does on a terminal.
    """
    if console.quiet:
        yield
        return
    if console.is_terminal:
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            progress.add_task(f"{doing} …", total=None)
            yield
        return
    if at_once:
        console.print(f"{doing} …", markup=False, soft_wrap=True)
    with _lines(console, lambda: f"{doing} …"):
        yield


@contextmanager
def entering(console: Console, doing: str, context: AbstractContextManager[Entered]) -> Iterator[Entered]:
    """Enter a context that takes a while, as `waiting` shows."""
    with ExitStack() as stack:
        with waiting(console, doing):
            entered = stack.enter_context(context)
        yield entered


@contextmanager
def progress_bar(
    console: Console, title: str, total: int, note: str = "", *, of: Literal["steps", "voxels"] = "steps"
) -> Iterator[Advance]:
    """Show a bar while the block runs; yields a callback for each of `total` steps.

    Args:
        console: Receives the bar, or a line every few seconds where it is no terminal.
        title: In front of the bar.
        total: Steps.
        note: Next to the bar before the first step.
        of: What a step is; voxels are shown as a share.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn() if of == "voxels" else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, note=note)

        def advance(note: str, total: int | None = None, completed: int | None = None) -> None:
            progress.update(task, total=total, advance=1 if completed is None else None, completed=completed, note=note)

        def line() -> str:
            now = progress.tasks[0]
            share = f"{now.completed:.0f} of {now.total:.0f}" if of == "steps" else f"{now.percentage:.0f}%"
            return f"{title}: {share}, {now.fields['note']}"

        with ExitStack() as stack:
            if not console.is_terminal and not console.quiet:
                stack.enter_context(_lines(console, line))
            yield advance


@contextmanager
def resumable(console: Console, saved: Callable[[], str]) -> Iterator[None]:
    """After Ctrl-C or SIGTERM, say what was saved and which command resumes the work.

    Args:
        console: Receives it.
        saved: Describes what was saved.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        arguments = [argument for argument in sys.argv[1:] if argument not in {"--resume", "--overwrite"}]
        command = shlex.join(["voxlift", *arguments, "--resume"])
        console.print(f"Stopped. {saved()} Resume with:\n  {command}", markup=False, soft_wrap=True)
        raise


@contextmanager
def _lines(console: Console, text: Callable[[], str]) -> Iterator[None]:
    """Print a line every few seconds, with the seconds so far, until the block ends."""
    ended, began = threading.Event(), time.monotonic()

    def print_until_ended() -> None:
        while not ended.wait(LINE_SECONDS):
            console.print(f"{text()} {time.monotonic() - began:.0f} s", markup=False, soft_wrap=True)

    thread = threading.Thread(target=print_until_ended, name="progress-lines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
