"""Upload of records that waited on disk while their store could not be written."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from configs.errors import VoxliftError
from workflow.tracking.entries import Writer, is_refusal
from workflow.tracking.pending import LeftRecord, find_records, reading
from workflow.tracking.store import first_line, opened_store, shown


@dataclass(frozen=True)
class UploadedRecord:
    """A record that its store has now.

    Args:
        folder: Where it waited.
        run_id: Of its run.
        experiment: Of its run.
        tracking_uri: Of the store, without a password.
        entries: Number of its entries.
    """

    folder: Path
    run_id: str
    experiment: str
    tracking_uri: str
    entries: int


@dataclass(frozen=True)
class WaitingRecord:
    """A record that waits on, in its folder, and why."""

    folder: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.folder} waits on: {self.reason}"


@dataclass(frozen=True)
class Upload:
    """Result of `voxlift sync`: the records that were uploaded, and those that wait on."""

    uploaded: tuple[UploadedRecord, ...]
    waiting: tuple[WaitingRecord, ...]


def upload_below(folders: Sequence[Path]) -> Upload:
    """Upload every record that waits in folders and in all below them, and remove it from there."""
    uploaded: list[UploadedRecord] = []
    waiting: list[WaitingRecord] = []
    for record in dict.fromkeys(path.resolve() for folder in folders for path in find_records(folder, below=True)):
        try:
            with reading(record) as left:
                uploaded.append(_upload(left))
        except VoxliftError as error:
            waiting.append(WaitingRecord(record, str(error)))
    return Upload(tuple(uploaded), tuple(waiting))


def upload_left(folder: Path, uri: str) -> None:
    """Upload what earlier runs have left in a folder for a store; what cannot be uploaded waits on."""
    for record in find_records(folder):
        with suppress(VoxliftError), reading(record) as left:
            if left.header.run.tracking_uri == uri:
                _upload(left)


def summary(upload: Upload) -> RenderableType:
    """List the records that were uploaded."""
    if not (upload.uploaded or upload.waiting):
        return Text("There is nothing to upload.")
    return Text(
        "\n".join(
            f"Uploaded {one.entries} entries of the run {one.run_id} ({one.experiment}) to {one.tracking_uri}."
            for one in upload.uploaded
        )
    )


def _upload(left: LeftRecord) -> UploadedRecord:
    """Write the entries of a record in order, then remove it; written twice, an entry changes nothing.

    Raises:
        VoxliftError: The store cannot be used, or refuses an entry.
    """
    address = left.header.run
    with opened_store("upload the record", address.tracking_uri) as client:
        writer = Writer(address, left.header.seals, client)
        refusals = []
        try:
            for entry in left.entries:
                try:
                    writer.write(entry)
                except Exception as error:
                    if not is_refusal(error):
                        raise
                    refusals.append(first_line(error))
            if not left.is_whole:
                writer.end_killed(left.last)
        except VoxliftError:
            raise
        except Exception as error:  # the backend of a store may raise anything
            raise VoxliftError(f"Cannot upload the record: {first_line(error)}.", "Try again.") from error
    if refusals:
        raise VoxliftError(
            f"The tracking store refuses {len(refusals)} of {len(left.entries)} entries: {refusals[0]}.",
            f"If the run was deleted there, remove {left.folder}.",
        )
    left.remove()
    run = writer.address
    return UploadedRecord(left.folder, run.run_id, run.experiment, shown(run.tracking_uri), len(left.entries))
