"""Python processes below this one, which take what they work on from a file and see this process end."""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any


def start_child(code: str, content: object, handles: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start Python on some code, with the search path of this process.

    Args:
        code: Statements.
        content: What `pickle.load(sys.stdin.buffer)` gives the child.
        handles: Of open files and connections, which it inherits under the same numbers; no others.
    """
    # By a file, which the child reads when it is up: writing to a pipe would wait for that.
    with tempfile.TemporaryFile() as file:
        pickle.dump(content, file)
        file.seek(0)
        # `-P` keeps the current folder out of the search path, a session of its own Ctrl-C out of the child.
        return subprocess.Popen(  # noqa: S603 - fixed arguments
            [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
            pass_fds=handles,
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def listen(parent: Connection, take: Callable[[Any], object]) -> None:
    """Take what the parent sends while this process works; end this process when the parent is gone."""

    def receive() -> None:
        try:
            while True:
                take(parent.recv())
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
