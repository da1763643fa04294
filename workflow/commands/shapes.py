"""`voxlift shapes`: the stage table of a latent and stages, or the stages for a wanted output."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.errors import ShapeError
from models.stages.forward_check import check_shape, stage_making
from models.stages.presets import LATENT, PRESETS
from models.stages.report import check_runnable, describe
from models.stages.solver import solve
from workflow.shapes import read_numbers, read_stage, route_tables, solutions_table, verdict
from workflow.terminal.console import JsonOption, screen

if TYPE_CHECKING:
    from models.stages.stage import Stage

TOLERANCE = 1e-5


def complete_routes(incomplete: str) -> list[str]:
    """Complete the name of a known route."""
    return [name for name in PRESETS if name.startswith(incomplete)]


def shapes(
    preset: Annotated[
        str | None, typer.Option(help=f"A known route: {', '.join(PRESETS)}.", autocompletion=complete_routes)
    ] = None,
    latent: Annotated[
        str | None, typer.Option(help="Shape of the latent: batch,depth,height,width,channels, such as 2,2,7,7,64.")
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="A stage such as 32,k3,s2 or 1,k4x8x8,s2x4x4; also d2, pvalid, op1. Repeat from latent to output."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Wanted output shape: the stages that lead there, or a check of those given.")
    ] = None,
    stages: Annotated[int | None, typer.Option(help="Number of stages to find, with --target.")] = None,
    channels: Annotated[str | None, typer.Option(help="Filters of the stages to find, such as 32,16,1.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Build layer and operation, run both, compare.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Explain transposed convolutions, stage by stage, or find the stages to a wanted shape.

    Give --preset NAME, or --latent and --stage …, or --latent and --target.
    """
    with screen(as_json) as opened:
        start = check_shape(read_numbers(latent, "--latent"), "latent") if latent is not None else None
        wanted = read_numbers(target, "--target") if target is not None else None
        found: list[tuple[Stage, ...]] = []
        if preset and not (stage or wanted):
            if preset not in PRESETS:
                raise ShapeError(f"There is no preset {preset}.", f"Use one of: {', '.join(PRESETS)}.")
            chain, start = PRESETS[preset], start or LATENT
        elif start and stage and not preset:
            chain = tuple(map(read_stage, stage))
            if wanted:
                # The last stage makes it, as `output_shape` does in `tf.nn`.
                last_input = describe(start, chain).stages[-1].input_shape
                chain = (*chain[:-1], stage_making(chain[-1], last_input, wanted))
        elif start and wanted and not preset:
            found = solve(start, wanted, stages, read_numbers(channels, "--channels") if channels is not None else None)
            chain = found[0]
        else:
            raise ShapeError(
                "Cannot show stages: give --preset NAME, or --latent SHAPE and a --stage for each stage, or"
                f" --latent SHAPE and --target SHAPE. Presets: {', '.join(PRESETS)}."
            )
        if not found and (stages is not None or channels is not None):
            raise ShapeError(
                "--stages and --channels say which stages to find: they go with --latent and --target alone."
            )

        report = describe(start, chain)
        result: dict[str, Any] = asdict(report)
        tables = route_tables(report, chain)
        if found:
            result["solutions"] = [asdict(describe(start, solution)) for solution in found]
            tables.insert(0, solutions_table(start, found))
        if verify:
            check_runnable(report)
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # hides TensorFlow's own messages
            from models.stages.upsampler import compare_implementations  # TensorFlow, which no other option needs

            verified = compare_implementations(start, chain)
            agrees = verified.shapes and verified.max_abs_difference <= TOLERANCE
            result["verified"] = asdict(verified)
            tables.append(verdict(verified.max_abs_difference, agrees=agrees))
        opened.show(result, *tables)
    if verify and not agrees:
        raise typer.Exit(1)
