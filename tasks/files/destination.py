"""Destination of outputs: a folder that can be written, with room for what will be written into it."""

import os
import shutil
from pathlib import Path

from configs.errors import InputError

LONGEST_NAME = 230  # bytes; file systems hold 255, and a file that is not finished has a longer name


def check_destination(output: Path, size: int) -> None:
    """Refuse an output that cannot be written, before any work for it.

    Args:
        output: A file that is to be written; its folder need not be there yet.
        size: Bytes that it will take at least, on the way and at the end.

    Raises:
        InputError: Its name is too long, or its folder is a file, may not be written, or lies on a disk without room.
    """
    if len(os.fsencode(output.name)) > LONGEST_NAME:
        raise InputError(
            f"Cannot write {output.name}: a name may have {LONGEST_NAME} bytes, this one has "
            f"{len(os.fsencode(output.name))}.",
            "Rename the input.",
        )
    home = next(folder for folder in output.absolute().parents if folder.exists())
    if not home.is_dir():
        raise InputError(
            f"Cannot write {output.name}: {home.name} is a file, not a folder.", "Choose another output folder."
        )
    if not os.access(home, os.W_OK | os.X_OK):
        raise InputError(
            f"Cannot write {output.name}: the folder {home.name} may not be written.",
            "Choose another output folder.",
        )
    free = shutil.disk_usage(home).free
    if size > free:
        raise InputError(
            f"Cannot write {output.name}: it takes at least {size / 2**20:.0f} MiB until it is done, and "
            f"{free / 2**20:.0f} MiB are free.",
            "Choose a smaller scale, or an output folder on another disk.",
        )
