"""Verification of the artifacts of a run or a folder, each against its contract and digest."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from configs.errors import ContractsError, InputError
from tasks.artifacts.manifest import CONTRACTS_FILE, Contracts, read_contracts
from tasks.files.trees import file_digest
from workflow.tracking import mlflow_api
from workflow.tracking.entries import CONTRACTS_TAG
from workflow.tracking.models import fetch_models
from workflow.tracking.store import opened_store, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class ArtifactProblems:
    """Problems of one artifact, by its path within the run or folder."""

    artifact: str
    what: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.artifact}: {'; '.join(self.what)}"


@dataclass(frozen=True)
class Verification:
    """Result of verifying a run or folder: the number of artifacts under contract, and the problems found."""

    what: str
    artifacts: int
    damages: tuple[ArtifactProblems, ...]


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
    run_id = run_or_folder.removeprefix("runs:/")
    with tempfile.TemporaryDirectory() as scratch:
        return _verified(run_or_folder, Path(scratch), run_id, _fetch(run_id, Path(scratch)))


def _verified(what: str, folder: Path, run_id: str | None = None, digest: str | None = None) -> Verification:
    problem, contracts = "", Contracts()
    try:
        contracts = read_contracts(folder)
        if run_id and contracts.run_id != run_id:
            problem = f"it is of another run, {contracts.run_id}"
        elif run_id and digest is None:
            problem = "it is not complete: the run has not ended"
        elif run_id and file_digest(folder / CONTRACTS_FILE) != digest:
            problem = "it was changed after the run had ended"
    except ContractsError as error:
        problem = error.problem
    found = {CONTRACTS_FILE: [problem]} if problem else {}
    if contracts.seals:
        # A folder of the user may hold other files too; every file that a run has logged is under contract.
        found |= contracts.problems(folder, alone=run_id is not None)
    damages = tuple(ArtifactProblems(path, tuple(problems)) for path, problems in found.items())
    return Verification(what, len(contracts.seals), damages)


def verdict(verification: Verification) -> RenderableType:
    """Report what was checked and list the problems."""
    if not verification.damages:
        return Text(f"{verification.artifacts} artifacts of {verification.what} are as they were made.")
    lines = [f"{len(verification.damages)} artifacts of {verification.what} are not as they were made:"]
    return Text("\n".join([*lines, *(f"  {damage}" for damage in verification.damages)]))


def _fetch(run_id: str, folder: Path) -> str | None:
    """Fetch all artifacts of a run, and its models as `model`, into a folder.

    Returns:
        SHA-256 of the `contracts.json` that the run logged at its end; None if it logged none.
    """
    with opened_store(f"find the run {run_id}") as client:
        try:
            run = client.get_run(run_id)
        except mlflow_api.MlflowException as error:
            raise InputError(
                f"Cannot find the run {run_id} in the tracking store {tracking_uri()}: name a run id or a folder, "
                "or set MLFLOW_TRACKING_URI to the store that has it."
            ) from error
        for path in _files(client, run_id):
            with tempfile.TemporaryDirectory(dir=folder) as partial:
                fetched = Path(client.download_artifacts(run_id, path, partial))
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                fetched.rename(folder / path)
        fetch_models(client, run, folder)
    digest: str | None = run.data.tags.get(CONTRACTS_TAG)
    return digest


def _files(client: "MlflowClient", run_id: str, folder: str | None = None) -> Iterator[str]:
    """List every file: a folder that has lost its files cannot be fetched as a whole."""
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from _files(client, run_id, entry.path)
        else:
            yield entry.path
