"""One writer at a time: lock files that name their holder, so that one left by a killed process is recognised."""

import fcntl
import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import psutil

from configs.errors import InputError, RunError

STAT_START = 19  # field of /proc/PID/stat after the name: ticks between boot and start, which no clock changes


@dataclass(frozen=True)
class Process:
    """A process, as others recognise it without knowing the name of its machine.

    Args:
        machine: Digest of the machine's name and of its installation, as several machines may have one name.
        boot: Id of the time since the machine was started; empty where there is none.
        container: Id of the space in which `pid` counts; empty where there is none.
        pid: Of the process.
        start: When it was started, in a unit of the machine: process ids are used again.
    """

    machine: str
    boot: str
    container: str
    pid: int
    start: str

    @classmethod
    def this(cls) -> "Process":
        """Return the process that asks."""
        machine = hashlib.sha256(f"{platform.node()} {_content('/etc/machine-id')}".encode()).hexdigest()[:16]
        container, boot = "", _content("/proc/sys/kernel/random/boot_id")
        with suppress(OSError):
            container = str(Path("/proc/self/ns/pid").readlink())
        return cls(machine, boot, container, os.getpid(), _start(os.getpid()))

    @classmethod
    def of(cls, text: str) -> "Process | None":
        """Read what `text` gave, with anything added to it; None where it names no process."""
        try:
            known = json.loads(text)
            machine, boot, container, start = (str(known[name]) for name in ("machine", "boot", "container", "start"))
            return cls(machine, boot, container, int(known["pid"]), start)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def text(self, **more: str) -> str:
        """Return it as text, with more that belongs to it."""
        return json.dumps({**asdict(self), **more})

    @property
    def mark(self) -> str:
        """The process, short, for the name of a file; `mark_is_gone` reads it."""
        place = hashlib.sha256(f"{self.machine} {self.container}".encode()).hexdigest()[:6]
        return f"{place}-{self.pid:x}-{self.start}"

    @property
    def is_gone(self) -> bool:
        """True if it is known to have ended; of a process of another machine or container nothing is known."""
        here = Process.this()
        if (self.machine, self.container) != (here.machine, here.container):
            return False
        return self.boot != here.boot or _start(self.pid) != self.start


def mark_is_gone(mark: str) -> bool:
    """Return whether the process that a mark stands for is known to have ended, as in `Process.is_gone`."""
    place, pid, start = mark.split("-")
    return place == Process.this().mark.split("-")[0] and _start(int(pid, 16)) != start


@dataclass(frozen=True)
class Lock:
    """A lock that was taken.

    Args:
        path: Of its file.
        content: Of the file, different for every lock.
        killed: The process that held it before and was killed, if one was.
    """

    path: Path
    content: str
    killed: Process | None = None

    def require_held(self) -> None:
        """Check that nobody else has taken the lock: its holder was killed, and this process works on without it.

        Raises:
            RunError: Another process holds it, or it was removed.
        """
        if _content(self.path) != self.content:
            raise RunError(f"Cannot write in {self.path.parent.name}: another run has taken it over.")

    def renewed(self) -> "Lock":
        """Replace the lock by a new one of this process: whoever works on with the old one has lost it.

        Raises:
            RunError: It was lost before.
        """
        self.require_held()
        content = _new_content()
        written = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        written.write_text(content)
        written.replace(self.path)
        return replace(self, content=content)


@contextmanager
def locked(path: Path, name: str) -> Iterator[Lock]:
    """Hold a lock while the block runs; its file is made, and removed at the end.

    A file of a process of this machine that has ended is replaced. The file is made by one exclusive call, which works
    on network file systems without a lock service too.

    Args:
        path: Of the lock file; its folder is made if it does not exist, and removed at the end if it is still empty.
        name: What is locked, for messages.

    Raises:
        InputError: Another process holds the lock, or its file cannot be written.
    """
    content = _new_content()
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with alone_in(path.parent):
            killed = Process.of(_content(path))
            if killed is not None and killed.is_gone:
                path.unlink(missing_ok=True)
            with path.open("x") as file, _removed_on_error(path):
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except FileExistsError as error:
        if path.parent.is_dir():
            raise _taken(path, name) from None
        what = f"{path.parent.name} is a file, and a folder of that name is needed"
        raise InputError(f"Cannot write {name}: {what}.", "Remove that file, or choose another folder.") from error
    except OSError as error:
        _remove_empty(made)
        raise InputError(f"Cannot write {name}: {error.strerror}.", "Choose another folder.") from error
    try:
        yield Lock(path, content, killed)
    finally:
        if Process.of(_content(path)) == Process.of(content):  # renewed or not
            path.unlink(missing_ok=True)
        _remove_empty(made)


def _new_content() -> str:
    return Process.this().text(host=platform.node(), token=secrets.token_hex(8))


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    """Remove a file that a full disk left empty: nobody could say whose lock it is."""
    try:
        yield
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out of a folder for a moment, by the lock of its operating system."""
    folder.mkdir(parents=True, exist_ok=True)
    folder_descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that knows no locks
            fcntl.flock(folder_descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder_descriptor)


def _taken(path: Path, name: str) -> InputError:
    """Say who holds a lock, since when, and what to do about it."""
    who, taken = "a process that cannot be named", time.time()
    with suppress(OSError):
        taken = path.stat().st_mtime
    with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
        known = json.loads(_content(path))
        who = f"process {int(known['pid'])} on {' '.join(str(known['host']).split())[:99]}"
    age = timedelta(seconds=max(0, round(time.time() - taken)))
    return InputError(
        f"Cannot write {name}: another run writes it, {who}, which began {age} ago.",
        f"Wait for it or end it. If it was killed on another machine or in another container, remove {path}.",
    )


def _start(pid: int) -> str:
    """Return when a process was started; "" where there is none of that id."""
    if fields := _content(f"/proc/{pid}/stat").rpartition(")")[2].split():
        return "" if fields[0] in "ZX" else fields[STAT_START]  # ended, and not yet waited for
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except (psutil.Error, ValueError, OverflowError):  # no process has such an id
        return ""


def _content(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
