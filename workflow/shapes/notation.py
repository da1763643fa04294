"""Stages and shapes as the command line writes them: `32,k3,s2`, `1,k4x8x8,s2x4x4,pvalid`, `2,2,7,7,64`."""

import re
from collections.abc import Sequence

from configs.errors import ShapeError
from models.stages.stage import Stage
from models.stages.wording import by

FORM = "FILTERS,kDxHxW,sDxHxW and optionally dDxHxW, psame or pvalid, opDxHxW, one number standing for three"
_PART = re.compile(r"(?P<key>op|k|s|d)=?(?P<sizes>-?\d{1,9}(x-?\d{1,9}x-?\d{1,9})?)|(p=?)?(?P<padding>same|valid)")
_NAMES = {"k": "kernel_size", "s": "strides", "d": "dilation_rate", "op": "output_padding"}


def read_stage(text: str) -> Stage:
    """Read a stage.

    Raises:
        ShapeError: If the text is no stage, or there is no such stage.

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
    """Write a stage as `read_stage` reads it, leaving out what goes without saying.

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
        ShapeError: If they are none.
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
