"""BIDS datasets: the anatomical images of one, and the derivative dataset that is made of them.

https://bids-specification.readthedocs.io
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from configs.errors import InputError
from tasks.files.atomic import replacing
from tasks.machine.versions import installed_versions

DESCRIPTION = "dataset_description.json"
BIDS_VERSION = "1.10.0"
PROGRAM = "voxlift"
NO_IMAGES = ("defacemask", "mask", "dseg", "probseg")  # suffixes of `anat`
NO_MAGNITUDES = ("phase", "real", "imag")  # labels of the entity `part`
# Files next to the images whose names are none of BIDS.
IGNORED = ("**/.voxlift/", "**/contracts.json", "**/*_quality.html", "adapted/")


def is_dataset(folder: Path) -> bool:
    """Check if a folder is the root of a BIDS dataset."""
    return (folder / DESCRIPTION).is_file() and bool(_participants(folder))


def anatomical_images(root: Path, participants: Sequence[str] = ()) -> list[Path]:
    """List the anatomical images of a dataset: magnitudes, neither masks nor segmentations, in the order of names.

    Args:
        root: Of the dataset; the datasets in its `derivatives` are not read.
        participants: Labels, with or without `sub-`; empty for all.

    Raises:
        InputError: A participant is not there, or there are no such images.
    """
    from bids2table import index_dataset  # noqa: PLC0415 - takes a third of a second, for datasets alone

    there = _participants(root)
    wanted = [label.removeprefix("sub-") for label in participants]
    if absent := [label for label in wanted if label not in there]:
        raise InputError(
            f"Cannot find participant {', '.join(absent)} in {root.name}: it holds {_listed(there)}.",
            "Give labels as in the names of its folders.",
        )
    rows = index_dataset(root, [f"sub-{label}" for label in wanted] or None).to_pylist()
    found = [root / row["path"] for row in rows if _is_anatomical(row)]
    if not found:
        raise InputError(
            f"Cannot find volumes in {root.name}: it is a BIDS dataset, and no anatomical image is in it.",
            "Name other images by their paths.",
        )
    return sorted(found)


def require_own(out: Path) -> None:
    """Refuse to write into the dataset of another program, or into one of raw data.

    Raises:
        InputError: The folder is one.
    """
    path = out / DESCRIPTION
    if not path.exists():
        return
    made_by = _description(out).get("GeneratedBy")
    names = [one.get("Name") for one in made_by if isinstance(one, dict)] if isinstance(made_by, list) else []
    if PROGRAM not in names:
        raise InputError(
            f"Cannot write into {out.name}: its {DESCRIPTION} is not one of {PROGRAM}.", "Choose another output folder."
        )


def describe_derivatives(root: Path, out: Path) -> None:
    """Write the description of the dataset that is made of another, and name the files in it that are none of BIDS.

    Args:
        root: Of the dataset that the images are from.
        out: Of the one that is made.
    """
    link = Path(os.path.relpath(root.resolve(), out.resolve())).as_posix()
    source = _description(root)
    content = {
        "Name": f"{PROGRAM}: super-resolved anatomical images",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": PROGRAM, "Version": installed_versions(PROGRAM)[PROGRAM]}],
        "SourceDatasets": [{"DOI": doi} if (doi := source.get("DatasetDOI")) else {"URL": f"{link}/"}],
        "DatasetLinks": {"raw": link},
    }
    for name, text in (
        (DESCRIPTION, json.dumps(content, indent=2) + "\n"),
        (".bidsignore", "".join(f"{pattern}\n" for pattern in IGNORED)),
    ):
        with replacing(out / name) as partial:
            partial.write_text(text, encoding="utf-8")


def bids_uri(path: Path, root: Path) -> str:
    """Name a file of a dataset as its derivatives do, by the link `raw` of their description."""
    return f"bids:raw:{path.relative_to(root).as_posix()}"


def _participants(root: Path) -> list[str]:
    return sorted(path.name.removeprefix("sub-") for path in root.glob("sub-*") if path.is_dir())


def _is_anatomical(row: dict[str, Any]) -> bool:
    """Check the entities of a file."""
    is_image = row["datatype"] == "anat" and row["ext"] in (".nii", ".nii.gz") and row["suffix"] not in NO_IMAGES
    return is_image and row["part"] not in NO_MAGNITUDES


def _description(root: Path) -> dict[str, Any]:
    """Read the description of a dataset; empty where it is none."""
    try:
        content = json.loads((root / DESCRIPTION).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _listed(labels: Iterable[str], most: int = 20) -> str:
    shown = list(labels)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
