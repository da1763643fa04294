"""Files that appear whole or not at all, also after a power cut."""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from configs.errors import InputError
from tasks.files.lock import Process, mark_is_gone
from tasks.files.trees import ZARR_METADATA, files_below, remove

MAX_NAME = 255  # bytes, of most file systems
PARTIAL = re.compile(r"\.([0-9a-f]{6}-[0-9a-f]+-[0-9]+)\.[\w-]+\.partial\.")


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path next to `path` to write to; it replaces `path` on success and is removed on an error.

    Args:
        path: The file.
        durable: Wait until it is on the disk. Files that carry a checksum need not.

    Raises:
        OSError: With the name of `path`, where the system names no other file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(partial_name(path.name))
    try:
        yield partial
        # Some file systems store the rename before the content: a power cut between them leaves an empty file.
        if durable:
            with partial.open("r+b") as file:
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            with suppress(OSError):  # some file systems synchronise no folder
                _synchronise(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in {None, str(partial)}:
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a path next to `path` for a Zarr folder; it replaces `path` on success and is removed on an error.

    All of it is on the disk before it has its name. A kill while an earlier folder is replaced may leave neither.

    Raises:
        InputError: There is something at `path` that is neither a file nor a Zarr folder.
    """
    require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(partial_name(path.name))
    before = path.with_name(partial_name(path.name))
    try:
        yield partial
        for file in files_below(partial):
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())
        with suppress(OSError):  # some file systems synchronise no folder
            for folder in (partial, *(one for one in partial.rglob("*") if one.is_dir())):
                _synchronise(folder)
        if path.exists():
            path.rename(before)  # a folder that holds something is not replaced in one step
        partial.rename(path)
        with suppress(OSError):
            _synchronise(path.parent)
    finally:
        remove(partial)
        remove(before)


def require_replaceable(path: Path) -> None:
    """Check that a path is free for a Zarr folder, or holds one, or a file: no other folder is ever removed.

    Raises:
        InputError: It is another folder.
    """
    if path.is_dir() and any(path.iterdir()) and not any((path / name).is_file() for name in ZARR_METADATA):
        raise InputError(
            f"Cannot write {path.name}: there is a folder of that name that holds no Zarr group.",
            "Choose another name, or remove it.",
        )


def partial_name(name: str) -> str:
    """Return a new temporary name of a file: `sweep_folders` removes it once this process is gone.

    It keeps the suffixes, because writers choose the format by them, and is unique across the hosts and containers that
    share a folder, where process ids are not. The process is named first, as far as there is room.
    """
    plain = f".{secrets.token_urlsafe(6)}.partial.{name}"
    mark = f".{Process.this().mark}"
    return mark + plain if len(os.fsencode(mark + plain)) <= MAX_NAME else plain


def sweep(path: Path) -> None:
    """Remove partial files that killed writers of `path` left next to it."""
    for partial in path.parent.glob(".*.partial.*"):
        if partial.name.endswith(f".partial.{path.name}"):
            remove(partial)


def sweep_folders(folders: Iterable[Path]) -> None:
    """Remove partial files that killed processes of this machine left directly in folders, of any file."""
    for folder in folders:
        for partial in folder.glob(".*.partial.*"):
            found = PARTIAL.match(partial.name)
            if found is not None and mark_is_gone(found[1]):
                remove(partial)


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
