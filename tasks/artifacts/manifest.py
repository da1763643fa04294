"""The manifest of artifacts: the contract and digest of each, in a `contracts.json` next to them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from configs.errors import ContractError, ContractsError
from configs.frozen import Frozen
from tasks.artifacts.contracts import Contract, FileContract, VolumeContract
from tasks.files.atomic import replacing
from tasks.files.trees import file_digest, is_stored, stored_size

CONTRACTS_FILE = "contracts.json"
PARTS = ".voxlift/*.manifest"
PLAIN = FileContract()


class ManifestEntry(Frozen):
    """A file that was read back and satisfied its contract.

    Args:
        contract: Of the file.
        sha256: Of its bytes.
        size: Bytes.
    """

    contract: Contract
    sha256: str
    size: int

    def problems(self, path: Path) -> list[str]:
        """List what is wrong with the file: violations of the contract, or other content than was recorded."""
        if not is_stored(path):  # a pipe would be waited for
            return ["it is no file, or a link to none" if os.path.lexists(path) else "it does not exist"]
        try:
            size = stored_size(path)
            if size == self.size and file_digest(path) == self.sha256:
                return []
            violations = self.contract.read_back(path).violations if size else ()
        except OSError as error:
            return [f"it cannot be read: {error.strerror}"]
        change = f"{size} bytes instead of {self.size}" if size != self.size else "its bytes were changed"
        return [*violations, f"it is not the file that was recorded: {change}"]


class Contracts(Frozen):
    """The content of a `contracts.json`.

    Args:
        run_id: Of the run that made the files, if one did.
        seals: By path, relative to the file itself, with `/`.
    """

    run_id: str | None = None
    seals: dict[str, ManifestEntry] = Field(default_factory=dict)

    def text(self) -> str:
        """Return the content of the file."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"

    def problems(self, folder: Path, *, alone: bool) -> dict[str, list[str]]:
        """Check every file under contract in a folder and below; returns the problems by path.

        Args:
            folder: Holds the files.
            alone: Whether a file under no contract is a problem.
        """
        found = {
            path: ["its path leads out of the folder"] if _leads_out(path) else entry.problems(folder / path)
            for path, entry in self.seals.items()
        }
        if alone:
            present = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
            unknown = {path.as_posix() for path in present if set(self.seals).isdisjoint(_with_folders(path))}
            for path in sorted(unknown - {CONTRACTS_FILE}):
                found[path] = ["it is under no contract of this run"]
        return {path: problems for path, problems in found.items() if problems}


def _with_folders(path: Path) -> Iterator[str]:
    """Yield a path and the folders that it is in."""
    return (one.as_posix() for one in (path, *path.parents))


def _leads_out(path: str) -> bool:
    return path.startswith("/") or ".." in path.split("/")


def manifest_entry(path: Path, contract: Contract = PLAIN, first: NDArray[np.float32] | None = None) -> ManifestEntry:
    """Read a file back once, check it against its contract and make its manifest entry.

    Args:
        path: The file.
        contract: Of the file.
        first: Filled with the voxels of the first time point, if the contract is that of a volume.

    Raises:
        ContractError: The file violates its contract.
    """
    found = contract.read_back(path, first) if isinstance(contract, VolumeContract) else contract.read_back(path)
    if found.violations:
        raise ContractError(f"{path.name} violates its contract: {'; '.join(found.violations)}.")
    return ManifestEntry(contract=contract, sha256=found.sha256, size=found.size)


def write_contracts(folder: Path, seals: Mapping[str, ManifestEntry], run_id: str | None = None) -> None:
    """Write the `contracts.json` of a folder."""
    with replacing(folder / CONTRACTS_FILE) as partial:
        partial.write_text(Contracts(run_id=run_id, seals=dict(seals)).text())


def note_entries(folder: Path, entries: Mapping[Path, ManifestEntry], run_id: str) -> None:
    """Note entries of files of a folder in a file of their own: several runs may write into one folder at once."""
    names = {path.name: entry for path, entry in entries.items()}
    part = hashlib.sha256(next(iter(names)).encode()).hexdigest()[:32]
    with replacing(folder / PARTS.replace("*", part)) as partial:
        partial.write_text(Contracts(run_id=run_id, seals=names).text())


def is_under_contract(path: Path) -> bool:
    """Check if a file is there and is noted in its folder, as the last step of making it."""
    with suppress(ContractsError):
        return path.is_file() and path.name in read_contracts(path.parent).seals
    return False


def collect_entries(folder: Path, run_id: str) -> None:
    """Write the `contracts.json` of a folder from all noted entries, those of other runs included, of files that exist.

    Of runs that collect at once, the last to write has seen what all have noted, or sees it now and writes again.
    """
    seen: dict[Path, int] = {}
    while (now := {part: part.stat().st_mtime_ns for part in folder.glob(PARTS)}) != seen:
        seen, known = now, Contracts()
        with suppress(ContractsError):
            known = read_contracts(folder)
        write_contracts(folder, {name: one for name, one in known.seals.items() if is_stored(folder / name)}, run_id)


def read_contracts(folder: Path) -> Contracts:
    """Read the `contracts.json` of a folder, and the entries of present files that were noted since.

    Raises:
        ContractsError: It does not exist, or holds no contracts.
    """
    whole, parts = folder / CONTRACTS_FILE, sorted(path for path in folder.glob(PARTS) if path.is_file())
    if not whole.is_file() and os.path.lexists(whole):
        raise ContractsError("it is no file, or a link to none")
    if not parts and not whole.exists():
        raise ContractsError("it does not exist, so nothing says what the other files should be")
    try:
        known = Contracts.model_validate_json(whole.read_bytes()) if whole.exists() else Contracts()
        noted = [Contracts.model_validate_json(part.read_bytes()).seals for part in parts]
    except (OSError, ValidationError):
        raise ContractsError("it was changed: it holds no contracts") from None
    present = {name: one for part in noted for name, one in part.items() if is_stored(folder / name)}
    return Contracts(run_id=known.run_id, seals=known.seals | present)
