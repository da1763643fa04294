"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path next to `path` to write to; it replaces `path` on success and is removed on an error.

    The name keeps the suffixes of `path`, because writers choose the format by them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove partial files that killed writers of `path` left next to it."""
    for partial in path.parent.glob(".*.partial.*"):
        if partial.name.endswith(f".partial.{path.name}"):
            partial.unlink(missing_ok=True)
