"""Check that every node of the cluster shares a folder, before there is anything to lose."""

from pathlib import Path
from tempfile import NamedTemporaryFile

from configs.errors import ConfigError
from workflow.cluster import on_other_nodes

HEARD = "seen"


def require_shared(folder: Path) -> None:
    """Check that each node reads what this one writes in a folder, and this one what the node writes.

    Args:
        folder: Made if it is missing. On one node there is nothing to check.

    Raises:
        ConfigError: A node does not; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, prefix=".voxlift-probe-") as probe:
        for node, answer in on_other_nodes(answer_probe, probe.name):
            why = str(answer) if isinstance(answer, Exception) else _unheard(Path(answer))
            if why:
                raise ConfigError(
                    f"Cannot use the folder {folder.name} for the run: node {node} does not share it ({why}).",
                    "Put --out on storage that every node mounts at the same path.",
                )


def answer_probe(probe: str) -> str:
    """Write an answer next to a probe, on the node that is asked; returns its path.

    Raises:
        OSError: The probe is not there, or nothing can be written next to it.
    """
    if not Path(probe).is_file():
        raise FileNotFoundError("what the driver writes is not there")
    with NamedTemporaryFile("w", dir=Path(probe).parent, prefix=".voxlift-probe-", delete=False) as answer:
        answer.write(HEARD)
    return answer.name


def _unheard(answer: Path) -> str:
    """Say why an answer is none; removes it."""
    try:
        heard = answer.read_text()
        answer.unlink()
    except OSError:
        heard = ""
    return "" if heard == HEARD else "what it writes is not seen here"
