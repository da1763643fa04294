"""The command line: `voxlift COMMAND`. Exit status 0 done, 2 wrong input or configuration, 1 anything else."""

import sys

import typer

from configs.errors import VoxliftError
from workflow.commands import (
    compare,
    demo,
    doctor,
    dry_run,
    evaluate,
    inspect,
    promote,
    shapes,
    sweep,
    train,
    upscale,
    verify,
)

app = typer.Typer(
    name="voxlift",
    help="Volumetric super-resolution of medical images, on one laptop or a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def voxlift() -> None:
    """Volumetric super-resolution of medical images, on one laptop or a cluster."""


app.command("compare")(compare.compare)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("dry-run")(dry_run.dry_run)
app.command("evaluate")(evaluate.evaluate)
app.command("inspect")(inspect.inspect)
app.command("promote")(promote.promote)
app.command("shapes")(shapes.shapes)
app.command("sweep")(sweep.sweep)
app.command("train")(train.train)
app.command("upscale")(upscale.upscale)
app.command("verify")(verify.verify)


def main() -> None:
    """Run the command line; the console script `voxlift` and `python -m workflow` start here."""
    try:
        app()
    except VoxliftError as error:
        print(f"voxlift: {error}", file=sys.stderr)  # noqa: T201 - the one place where an error meets a person
        sys.exit(error.exit_status)
