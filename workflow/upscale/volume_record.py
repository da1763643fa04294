"""Records of finished outputs, by which a resumed run recognises them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.artifacts.manifest import file_digest
from tasks.files.atomic import replacing


@dataclass(frozen=True)
class Written:
    """Record of a written output.

    Args:
        sha256: Of the voxels, float32, i fastest.
        consistency: Root mean square difference between the output, degraded again, and the input, in normalised
            intensity; None where the target grid is coarser than the input along an axis.
        consistency_before: The same before the correction.
        noise: Standard deviation of the input's noise as the correction took it, in normalised intensity.
    """

    sha256: str
    consistency: float | None
    consistency_before: float | None
    noise: float | None


def note(record: Path, output: Path, asked: Sequence[object], written: Written) -> None:
    """Note an output, in a file that appears whole.

    Args:
        record: Where.
        output: The file that was written.
        asked: Plain data, what decides on the output next to what the record is named by.
        written: What was written.
    """
    content = {"output": file_digest(output), "asked": list(asked), "written": asdict(written)}
    with replacing(record) as partial:
        partial.write_text(json.dumps(content))


def noted(record: Path, output: Path, asked: Sequence[object]) -> Written | None:
    """Return the record of an output that is unchanged and was made for the same request; None otherwise."""
    if not record.is_file() or not output.is_file():
        return None
    try:
        content = json.loads(record.read_text())
        same = content["output"] == file_digest(output) and content["asked"] == list(asked)
        return Written(**content["written"]) if same else None
    except (ValueError, KeyError, TypeError):
        return None
