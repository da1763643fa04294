"""The command line: `voxlift COMMAND`. Exit status 0 done, 2 wrong input or configuration, 1 anything else."""

import errno
import signal
import sys
import tempfile
import traceback
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from configs.errors import VoxliftError

COMMANDS = (
    *("compare", "demo", "doctor", "dry-run", "evaluate", "inspect"),
    *("presets", "promote", "schema", "shapes", "sweep", "sync", "train", "upscale", "verify"),
)
HELP = {"help_option_names": ["-h", "--help"]}


class LazyGroup(TyperGroup):
    """Group that imports the module of a command only when the command is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 - a context of typer's own click
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - types of typer's own click
        """Return a command; after a name that is none, all are there to be suggested."""
        for name in (cmd_name,) if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.add_command(_loaded(name), name)
        return super().get_command(ctx, cmd_name)


def _loaded(name: str) -> Any:  # noqa: ANN401 - a command of typer's own click
    """Make the command of `workflow/commands/NAME.py`, the function that is called like its module."""
    function = name.replace("-", "_")
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    single.command(name, context_settings=HELP)(getattr(import_module(f"workflow.commands.{function}"), function))
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    name="voxlift",
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - as typer calls it
    """Print the version and exit, if it is wanted."""
    if wanted:
        typer.echo(f"voxlift {version('voxlift')}")
        raise typer.Exit


@app.callback()
def voxlift(
    _version: Annotated[  # noqa: FBT002 - as typer's options are
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Volumetric super-resolution of medical images, on one laptop or a cluster."""


def main() -> None:
    """Run the command line; the console script `voxlift` and `python -m workflow` start here."""
    # From here on, at any moment of a command: blocks that have something to save or to end do so.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except VoxliftError as error:
        _fail(str(error), error.exit_status)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            where = f" {error.filename}" if error.filename else ""
            _fail(f"Cannot write{where}: the disk is full. Make room, and give --resume where the command has it.", 1)
        with tempfile.NamedTemporaryFile(
            "w", prefix="voxlift-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log:
            traceback.print_exc(file=log)
        _fail(f"Stopped by an error that was not foreseen ({type(error).__name__}). Report it with {log.name}.", 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, status: int) -> NoReturn:
    """Print why a command failed, without characters that a terminal would act upon, and exit."""
    shown = "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in message
    )
    print(f"voxlift: {shown}", file=sys.stderr)  # noqa: T201 - the one place where an error meets a person
    sys.exit(status)
