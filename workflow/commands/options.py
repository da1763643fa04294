"""Options that several commands share."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from configs.errors import InputError

if TYPE_CHECKING:
    from configs.schema import Resources

Three = tuple[float, float, float]


def complete_presets(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a preset, with its description; where none begins like that, a shell completes files."""
    from configs.load import preset_descriptions  # its models take time to build, which `--help` need not wait for

    return [(name, text) for name, text in preset_descriptions().items() if name.startswith(incomplete)]


Config = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="A YAML file or the name of a preset.", autocompletion=complete_presets),
]
Volumes = Annotated[list[str], typer.Argument(help="Files, folders, globs, or .txt, .csv and .tsv lists of paths.")]
AsImages = Annotated[
    Literal["image"] | None, typer.Option("--as", help="Take all volumes for images, label maps too; else refused.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the configuration.")
]
Spacing = Annotated[str | None, typer.Option(help="MM or I,J,K: wanted spacing in mm, in the file's axes.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run left in the folder of the outputs.")
]
AUTO = "auto"
Workers = Annotated[int, typer.Option(min=1, help="Ray workers.")]
MemoryBudget = Annotated[
    int, typer.Option(min=1, metavar="MIB", help="Memory that a worker may take for a shard, in MiB.")
]


def workers_or_auto(text: str) -> str:
    """Check a number of workers, or `auto`.

    Raises:
        typer.BadParameter: It is neither.

    >>> workers_or_auto("4"), workers_or_auto("auto")
    ('4', 'auto')
    """
    return _number_or_auto(text, 1)


def gpus_or_auto(text: str) -> str:
    """Check a number of GPUs, or `auto`; arguments and errors as of `workers_or_auto`.

    >>> gpus_or_auto("0"), gpus_or_auto("auto")
    ('0', 'auto')
    """
    return _number_or_auto(text, 0)


def _number_or_auto(text: str, least: int) -> str:
    if text != AUTO and not (text.isdecimal() and int(text) >= least):
        raise typer.BadParameter(f"{text} is neither a number from {least} nor {AUTO}.")
    return text


GpusPerWorker = Annotated[
    str,
    typer.Option(
        parser=gpus_or_auto, metavar="N|auto", help="GPUs of each worker, 0 for none; auto: one, if there are enough."
    ),
]


def resources_of(workers: int, memory_budget: int, **others: float) -> "Resources":
    """Make the resources of a run from its options: Ray workers, MiB of a shard, and fields of `Resources`."""
    from configs.schema import Resources  # its models take time to build, which `--help` need not wait for

    return Resources.model_validate({"workers": workers, "memory_budget_mib": memory_budget, **others})


def require_one_of(*, resume: bool, overwrite: bool) -> None:
    """Refuse to continue an earlier run and to replace it at once.

    Raises:
        InputError: Both are wanted.
    """
    if resume and overwrite:
        raise InputError("Cannot both resume a run and overwrite it.", "Give --resume or --overwrite, not both.")


def three_numbers(text: str | None, option: str, *, zeros: bool = False) -> Three | None:
    """Read `I,J,K` along the file's own voxel axes, or one number for all: positive, or 0 where `zeros` says so.

    Returns:
        None where the option is not given.

    Raises:
        InputError: It is anything else.

    >>> three_numbers("2,2,1.5", "--scale"), three_numbers("2", "--scale")
    ((2.0, 2.0, 1.5), (2.0, 2.0, 2.0))
    """
    if not text:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
        i, j, k = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError:
        i = j = k = float("nan")
    if not all(0 < value < float("inf") or (zeros and value == 0) for value in (i, j, k)):
        raise InputError(
            f"Cannot use {option} {text}: one or three positive numbers I,J,K are needed, such as {option} 2,2,2."
        )
    return i, j, k
