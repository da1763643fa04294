"""Records that a store did not take, on disk: the entries of a run in order, a line each, and the files they need."""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import Field, TypeAdapter, ValidationError

from configs.errors import InputError, ReadError
from tasks.artifacts.manifest import ManifestEntry
from tasks.files.atomic import replacing
from tasks.files.lock import locked
from workflow.tracking.entries import Address, Artifact, Ending, Entry, Registration, Stored, TrainedModel
from workflow.tracking.store import RunAddress

FOLDER = ".voxlift/pending"
RECORD, LOCK, FILES = "record.jsonl", "record.lock", "files"


class Header(Stored):
    """The first line of a record.

    Args:
        run: Its address; without an id if it could not be made.
        seals: Manifest entries of the artifacts that it has.
    """

    run: RunAddress
    seals: dict[str, ManifestEntry] = Field(default_factory=dict)


ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


class PendingRecord:
    """The part of a record that waits on disk; nothing is there before the first entry.

    Args:
        base: Folder that it is for, next to the outputs of the run.
        header: Returns its first line.
    """

    def __init__(self, base: Path, header: Callable[[], Header]) -> None:
        self.base = base
        self._name, self._header = secrets.token_hex(8), header
        self._scratch: Path | None = None
        self._open = ExitStack()
        self._file: BinaryIO | None = None
        self._files = 0

    def add(self, entry: Entry) -> Entry:
        """Add an entry, with a copy of its file; returns the entry of that copy.

        Raises:
            OSError: There is no room for it.
            InputError: No folder can be written.
        """
        file = self._file or self._opened()
        if isinstance(entry, Artifact | TrainedModel):
            self._files += 1
            copy = self._folder / FILES / str(self._files) / entry.file.name
            copy.parent.mkdir(parents=True)
            shutil.copyfile(entry.file, copy)
            entry = entry.model_copy(update={"file": copy})
        self._append(file, _line(_on_disk(entry, self._folder)))
        return entry

    def discard(self) -> None:
        """Remove what is on disk."""
        if self._file is not None:
            _remove(self._folder)
        self.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def close(self) -> None:
        """Leave what is on disk to others."""
        self._file = None
        self._open.close()

    @property
    def _folder(self) -> Path:
        return self.base / FOLDER / self._name

    def _opened(self) -> BinaryIO:
        """Begin the record, in a folder for temporary files where the first is not writable."""
        try:
            return self._begin()
        except (OSError, InputError):
            self.close()
            self._scratch = self._scratch or Path(tempfile.mkdtemp(prefix="voxlift-record-"))
            wanted, self.base = self.base, self._scratch
            try:
                return self._begin()
            except (OSError, InputError):
                self.close()
                self.base = wanted
                raise

    def _begin(self) -> BinaryIO:
        path = self._folder / RECORD
        self._open.enter_context(locked(self._folder / LOCK, f"the record in {self.base.name}"))
        with replacing(path) as partial:
            partial.write_bytes(_line(self._header()))
        self._file = self._open.enter_context(path.open("ab", buffering=0))
        return self._file

    def _append(self, file: BinaryIO, content: bytes) -> None:
        """Append to the record, whole and on the disk, or not at all."""
        before = file.tell()
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


@dataclass(frozen=True)
class LeftRecord:
    """A record that its process has left on disk, open for one reader.

    Args:
        folder: Of the record.
        header: Of its run.
        entries: In the order in which they are to be written.
        last: When something was added last, in milliseconds since 1970.
    """

    folder: Path
    header: Header
    entries: Sequence[Entry]
    last: int

    @property
    def is_whole(self) -> bool:
        """True if the run has ended by itself."""
        return any(isinstance(entry, Ending) for entry in self.entries)

    def remove(self) -> None:
        """Remove it from disk."""
        _remove(self.folder)


def find_records(folder: Path, *, below: bool = False) -> list[Path]:
    """Return the folders of the records in a folder, and in all below it if wanted."""
    pattern = f"{FOLDER}/*/{RECORD}"
    return sorted(path.parent for path in folder.glob(f"**/{pattern}" if below else pattern))


@contextmanager
def reading(folder: Path) -> Iterator[LeftRecord]:
    """Read a record, while no other process does.

    Raises:
        InputError: The process that writes it goes on, or another reads it.
        ReadError: It is damaged.
    """
    with ExitStack() as stack:
        stack.enter_context(locked(folder / LOCK, f"the record {folder.name}"))
        path = folder / RECORD
        try:
            first, *lines = path.read_bytes().split(b"\n")
            header = Header.model_validate_json(first)
            # After the last line break is nothing, or what a killed process had begun.
            entries = [_from_disk(ENTRY.validate_json(line), folder) for line in lines[:-1]]
            entries.sort(key=_rank)
            last = path.stat().st_mtime_ns // 1_000_000
        except (OSError, ValidationError) as error:
            raise ReadError(str(path), "it holds no record of a run", "Remove its folder.") from error
        yield LeftRecord(folder, header, entries, last)


def _line(stored: Stored) -> bytes:
    return stored.model_dump_json().encode() + b"\n"


def _rank(entry: Entry) -> int:
    """Put entries that need all others last: a full disk may have delayed others until after them."""
    return 2 if isinstance(entry, Ending) else 1 if isinstance(entry, Registration) else 0


def _on_disk(entry: Entry, folder: Path) -> Entry:
    """An entry with the path of its file relative to the folder of the record."""
    if not isinstance(entry, Address | Artifact | TrainedModel):
        return entry
    return entry.model_copy(update={"file": Path(os.path.relpath(entry.file, folder))})


def _from_disk(entry: Entry, folder: Path) -> Entry:
    if not isinstance(entry, Address | Artifact | TrainedModel):
        return entry
    return entry.model_copy(update={"file": folder / entry.file})


def _remove(folder: Path) -> None:
    """Remove a record, the line file first, and the folders above it that it leaves empty."""
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        for above in (folder.parent, folder.parents[1]):
            above.rmdir()
