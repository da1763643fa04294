"""Stages on the command line: the notation of a stage, and tables that report on stages."""

import re
from collections.abc import Sequence
from math import prod

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from configs.axes import AXES, TensorShape
from configs.errors import ShapeError
from models.stages.diagnostics import blocks
from models.stages.forward_check import accepted_shapes
from models.stages.frameworks import Elsewhere
from models.stages.report import Report, StageReport, describe
from models.stages.stage import Stage
from models.stages.wording import by, grouped

FORM = "FILTERS,kDxHxW,sDxHxW and optionally dDxHxW, psame or pvalid, opDxHxW, one number standing for three"
_PART = re.compile(r"(?P<key>op|k|s|d)=?(?P<sizes>-?\d{1,9}(x-?\d{1,9}x-?\d{1,9})?)|(p=?)?(?P<padding>same|valid)")
_NAMES = {"k": "kernel_size", "s": "strides", "d": "dilation_rate", "op": "output_padding"}
FLOAT_BYTES = 4


def read_stage(text: str) -> Stage:
    """Read a stage.

    Raises:
        ShapeError: The text describes no possible stage.

    >>> read_stage("1,k3,s1x2x2") == Stage(1, kernel_size=(3, 3, 3), strides=(1, 2, 2))
    True
    """
    filters, *parts = text.replace(" ", "").split(",")
    triples: dict[str, tuple[int, int, int]] = {}
    padding, seen = "same", set[str]()
    for part in parts:
        found = _PART.fullmatch(part)
        if found is None:
            raise ShapeError(f"Cannot read --stage {text}: {part!r} is none of its parts. A stage is {FORM}.")
        key = found["key"] or "p"
        if key in seen:
            raise ShapeError(f"Cannot read --stage {text}: {part!r} says {key} a second time. A stage is {FORM}.")
        seen.add(key)
        if found["padding"]:
            padding = found["padding"]
        else:
            sizes = [int(size) for size in found["sizes"].split("x")]
            triples[_NAMES[key]] = (sizes[0], sizes[len(sizes) // 2], sizes[-1])
    if not re.fullmatch(r"-?\d{1,9}", filters) or "kernel_size" not in triples:
        raise ShapeError(
            f"Cannot read --stage {text}: it needs filters and a kernel, such as 32,k3,s2. A stage is {FORM}."
        )
    triples.setdefault("strides", (1, 1, 1))
    try:
        return Stage(int(filters), padding=padding, **triples)
    except ShapeError as error:
        raise ShapeError(f"--stage {text}: {error}") from None


def stage_text(stage: Stage) -> str:
    """Write a stage as `read_stage` reads it, leaving out defaults.

    >>> stage_text(Stage(1, (3, 4, 4), (1, 2, 2)))
    '1,k3x4x4,s1x2x2'
    """
    parts = [str(stage.filters), f"k{by(stage.kernel_size)}", f"s{by(stage.strides)}"]
    if max(stage.dilation_rate) > 1:
        parts.append(f"d{by(stage.dilation_rate)}")
    if stage.padding != "same":
        parts.append(f"p{stage.padding}")
    if stage.output_padding is not None:
        parts.append(f"op{by(stage.output_padding)}")
    return ",".join(parts)


def read_numbers(text: str, option: str) -> list[int]:
    """Read whole numbers between commas.

    Raises:
        ShapeError: The text is anything else.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ShapeError(
            f"Cannot read {option} {text}: it is whole numbers between commas, such as 2,2,7,7,64."
        ) from None


def numbers_text(numbers: Sequence[int]) -> str:
    """Write whole numbers as `read_numbers` reads them."""
    return ",".join(map(str, numbers))


def route_tables(report: Report, stages: Sequence[Stage]) -> list[RenderableType]:
    """Tables of shapes, cost, overlap and other frameworks, then a summary and the warnings."""
    rows = list(zip(report.stages, stages, strict=True))
    return [
        _table(
            "Shapes, as batch,depth,height,width,channels",
            ("Stage", "Input", "Output", "Kernel", "Stride", "Padding", "tf.nn accepts sizes"),
            [_shape_row(one, stage) for one, stage in rows],
        ),
        _table(
            "Weights, as depth,height,width,out,in, and cost in float32",
            ("Stage", "Weights", "Parameters", "Multiply-adds", "Memory", "Forward convolution gives back"),
            [_cost_row(one) for one in report.stages],
        ),
        _table(
            "Taps that reach each phase of the output, and the shift of the image in output voxels",
            ("Stage", "Depth", "Height", "Width", "Holes", "Checkerboard", "Shift"),
            [_overlap_row(one) for one in report.stages],
        ),
        _table(
            "The same operation elsewhere, with the weights as in,out,depth,height,width",
            ("Stage", "Caffe", "PyTorch"),
            [(_elsewhere(one.caffe), _elsewhere(one.torch)) for one in report.stages],
        ),
        Text(_summary(report)),
        Text("\nWarnings", style="bold") if report.warnings else Text("Clean: no holes, even overlap, no shift."),
        *(Text(f"- {warning}") for warning in report.warnings),
    ]


def solutions_table(latent: TensorShape, solutions: Sequence[Sequence[Stage]]) -> Group:
    """Table of the stages that lead to a target, best first."""
    reports = [describe(latent, stages) for stages in solutions]
    rows = [
        (" ".join(map(stage_text, stages)), *_totals(report), _verdict(report, stages))
        for report, stages in zip(reports, solutions, strict=True)
    ]
    return _table(
        "Solutions, as --stage takes them, best first; the tables below are of the first",
        ("", "Stages", "Parameters", "Multiply-adds", "Verdict"),
        rows,
    )


def _totals(report: Report) -> tuple[str, str]:
    """Parameters and multiply-adds of all stages."""
    return f"{sum(one.parameters for one in report.stages):,}", f"{sum(one.multiply_adds for one in report.stages):,}"


def _verdict(report: Report, stages: Sequence[Stage]) -> str:
    defects = {
        "holes": any(one.holes for one in report.stages),
        "checkerboard": any(one.checkerboard for one in report.stages),
        "shift": any(any(one.shift) for one in report.stages),
    }
    if any(defects.values()):
        return ", ".join(defect for defect, found in defects.items() if found)
    return "clean, but blocks" if any(blocks(axis) for stage in stages for axis in stage.axes) else "clean"


def verdict(difference: float, *, agrees: bool) -> Text:
    """Summary of the layer and the operation run side by side."""
    if agrees:
        return Text("Verified: every layer and operation made the shape above, and their values agree within 1e-5.")
    return Text(f"NOT verified: layer and operation differ, in shape or by {difference:g} in value.")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Group:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name in {"Parameters", "Multiply-adds"} else "left")
    for number, row in enumerate(rows, start=1):
        table.add_row(str(number), *row)
    return Group(Text(title, style="bold"), table)


def _shape_row(report: StageReport, stage: Stage) -> tuple[str, ...]:
    details = [stage.padding]
    if max(stage.dilation_rate) > 1:
        details.append(f"dilation {by(stage.dilation_rate)}")
    if stage.output_padding is not None:
        details.append(f"output padding {by(stage.output_padding)}")
    sizes = [f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in accepted_shapes(stage, report.input_shape)]
    return (
        numbers_text(report.input_shape),
        numbers_text(report.output_shape),
        by(report.kernel_size),
        by(report.strides),
        ", ".join(details),
        " ".join(sizes),
    )


def _cost_row(report: StageReport) -> tuple[str, ...]:
    values = prod(report.output_shape) + report.parameters
    check = report.forward_check
    return (
        numbers_text(report.weights_shape),
        f"{report.parameters:,}",
        f"{report.multiply_adds:,}",
        _bytes(values * FLOAT_BYTES),
        f"{numbers_text(check.expected_input)}: {'right' if check.ok else 'wrong'}",
    )


def _overlap_row(report: StageReport) -> tuple[str, ...]:
    return (
        *(" ".join(map(str, counts)) for counts in report.overlap),
        "yes" if report.holes else "no",
        "yes" if report.checkerboard else "no",
        " ".join(f"{moved:+g}" if moved else "0" for moved in report.shift),
    )


def _elsewhere(elsewhere: Elsewhere) -> str:
    if not elsewhere.equivalent:
        return f"none. {elsewhere.reason}"
    added = f", output_padding {by(elsewhere.output_padding)}" if any(elsewhere.output_padding) else ""
    return f"pad {by(elsewhere.pad)}{added}"


def _summary(report: Report) -> str:
    sides = ((axis, f"{a} before, {b} after") for axis, (a, b) in zip(AXES, report.receptive_field, strict=True))
    parameters, multiply_adds = _totals(report)
    return (
        f"Total: {parameters} parameters, {multiply_adds} multiply-adds, stride {by(report.total_stride)}.\n"
        f"Receptive field, in latent voxels beyond an output voxel's own: {'; '.join(grouped(sides))}."
    )


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"
