"""`voxlift inspect`: volumes as they are understood, before any work."""

from typing import TYPE_CHECKING, Annotated

import typer

from configs.errors import InputError
from workflow.terminal.console import JsonOption, screen

if TYPE_CHECKING:
    from rich.table import Table

    from tasks.volume.grid import Grid
    from tasks.volume.inspection import Findings


def inspect(
    volumes: Annotated[list[str], typer.Argument(help="Files, folders, globs, or .txt, .csv and .tsv lists of paths.")],
    scale: Annotated[str | None, typer.Option(help="I,J,K: show the target grid of this scale.")] = None,
    spacing: Annotated[str | None, typer.Option(help="I,J,K: show the target grid of this spacing, in mm.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check volumes to their last byte and show their geometry as understood."""
    refused = []
    with screen(as_json) as opened:
        from tasks.files.selection import expand_inputs
        from tasks.volume.inspection import preflight
        from tasks.volume.target import three_numbers

        wanted_scale = three_numbers(scale, "--scale") if scale else None
        wanted_spacing = three_numbers(spacing, "--spacing") if spacing else None
        records: list[dict[str, object]] = []
        passed: list[tuple[Findings, Grid | None]] = []
        for path in expand_inputs(volumes):
            try:
                findings = preflight(path)
                target = _target(findings, wanted_scale, wanted_spacing) if scale or spacing else None
            except InputError as error:
                refused.append(str(error))
                records.append({"input": str(path), "status": "refused", "error": str(error)})
                continue
            passed.append((findings, target))
            records.append(_record(str(path), findings, target))
        tables = [_table(passed)] if passed else []
        opened.show({"volumes": records}, *tables)
    for message in refused:
        typer.echo(f"voxlift: {message}", err=True)
    if refused:
        raise typer.Exit(2)


def _target(
    findings: "Findings", scale: tuple[float, float, float] | None, spacing: tuple[float, float, float] | None
) -> "Grid":
    import numpy as np

    from tasks.volume.grid import Grid
    from tasks.volume.target import target_grid

    return target_grid(Grid(findings.shape, np.array(findings.affine)), scale, spacing)


def _record(path: str, findings: "Findings", target: "Grid | None") -> dict[str, object]:
    from dataclasses import asdict

    record = {"input": path, "status": "passed", **asdict(findings)}
    if target is not None:
        record |= {"target_shape": target.shape, "target_spacing": target.spacing, "target_memory_mib": target.mib}
    return record


def _table(passed: list[tuple["Findings", "Grid | None"]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table("volume", "geometry", "voxels", show_lines=True)
    for found, target in passed:
        geometry = [
            f"{_by(found.shape)} at {_by(found.spacing)} mm",
            f"{found.axes}, {found.oblique:.1f}° oblique, slices along {found.slice_axis}",
            "qform code {}, sform code {}".format(*found.codes),
            *([f"target {_by(target.shape)} at {_by(target.spacing)} mm, {target.mib:.1f} MiB"] if target else []),
            *(f"! {warning}" for warning in found.warnings),
        ]
        voxels = [
            f"{found.format}, {found.dtype}",
            f"{found.lowest:.4g} to {found.highest:.4g}",
            f"{found.memory_mib:.1f} MiB" + (f" x {found.times} time points" if found.times > 1 else ""),
        ]
        table.add_row(*(Text(text) for text in (found.file, "\n".join(geometry), "\n".join(voxels))))
    return table


def _by(values: tuple[float, ...]) -> str:
    return "x".join(f"{value:.4g}" for value in values)
