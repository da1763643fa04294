"""Stored volumes, each one file or, in OME-Zarr, a folder of files: their digest, size and removal."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

ZARR_SUFFIX = ".zarr"
ZARR_METADATA = ("zarr.json", ".zgroup", ".zarray")  # of version 3, and of a group and an array of version 2


def is_zarr(path: Path) -> bool:
    """Check if a path is a folder that holds a Zarr group or array, or is called so."""
    named = path.suffix.lower() == ZARR_SUFFIX
    return path.is_dir() and (named or any((path / name).is_file() for name in ZARR_METADATA))


def is_stored(path: Path) -> bool:
    """Check if a volume is there, as a file or as a Zarr folder; a name that no file system takes is not."""
    return os.path.isfile(path) or (os.path.isdir(path) and is_zarr(path))  # noqa: PTH112, PTH113 - no error


def files_below(path: Path) -> Iterator[Path]:
    """Yield a file itself, or the files of a folder and below in the order of their paths; links are not followed."""
    if not path.is_dir():
        yield path
        return
    found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    yield from sorted(found, key=lambda file: file.relative_to(path).as_posix())


def stored_size(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in files_below(path))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; for a folder, that of the lines that `sha256sum` prints of its files, in order."""
    if path.is_dir():
        lines = (f"{file_digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files_below(path))
        digest = hashlib.sha256()
        for line in lines:
            digest.update(line.encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
