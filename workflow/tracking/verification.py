"""Artifacts checked again: those of a run or of a folder, each against the contract that it kept when it was made."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from configs.errors import ContractsError, InputError
from tasks.artifacts.manifest import CONTRACTS_FILE, Contracts, file_digest, read_contracts
from workflow.tracking.fetching import fetched_run


@dataclass(frozen=True)
class Damage:
    """Problems of one artifact.

    Args:
        artifact: Its path within the run or folder.
        what: Each thing that is wrong.
    """

    artifact: str
    what: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.artifact}: {'; '.join(self.what)}"


@dataclass(frozen=True)
class Verification:
    """Result of a verification.

    Args:
        what: The run or folder.
        artifacts: How many are under contract.
        damages: What is wrong; empty when all is well.
    """

    what: str
    artifacts: int
    damages: tuple[Damage, ...]


def verify(run_or_folder: str) -> Verification:
    """Check all artifacts of a run, or of a folder with a `contracts.json`.

    Args:
        run_or_folder: A folder, a run id or `runs:/ID`.

    Raises:
        InputError: There is no such run or folder.
    """
    folder = Path(run_or_folder)
    if folder.is_dir():
        return _verified(run_or_folder, folder)
    if "/" in run_or_folder.removeprefix("runs:/"):
        raise InputError(f"Cannot verify {run_or_folder}: there is no such folder.", "Name a folder or a run id.")
    with fetched_run(run_or_folder.removeprefix("runs:/")) as run:
        return _verified(run_or_folder, run.folder, run.run_id, run.contracts_digest)


def _verified(what: str, folder: Path, run_id: str | None = None, digest: str | None = None) -> Verification:
    said: list[str] = []
    contracts = Contracts()
    try:
        contracts = read_contracts(folder)
        if run_id and contracts.run_id != run_id:
            said.append(f"it is of another run, {contracts.run_id}")
        elif run_id and digest is None:
            said.append("it is not complete: the run has not ended")
        elif run_id and file_digest(folder / CONTRACTS_FILE) != digest:
            said.append("it was changed after the run had ended")
    except ContractsError as error:
        said.append(error.problem)
    # A folder of the user may hold files of other kinds; what a run has logged is all under contract.
    damages = contracts.problems(folder, alone=run_id is not None) if contracts.seals else {}
    found = [Damage(path, tuple(damage)) for path, damage in damages.items()]
    about_contracts = [Damage(CONTRACTS_FILE, tuple(said))] if said else []
    return Verification(what, len(contracts.seals), (*about_contracts, *found))


def verdict(verification: Verification) -> RenderableType:
    """Say what was checked and list what is wrong."""
    if not verification.damages:
        return Text(f"{verification.artifacts} artifacts of {verification.what} are as they were made.")
    lines = [f"{len(verification.damages)} artifacts of {verification.what} are not as they were made:"]
    return Text("\n".join([*lines, *(f"  {damage}" for damage in verification.damages)]))
