"""Machines on this machine, each with an ssh server, a host name, processes, a home and a /tmp of its own."""

import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import unused_port
from tests.processes import alive, below, until
from tests.workflow.small_upscaling import ROOT

SERVER = "/usr/sbin/sshd"
HOME = pwd.getpwuid(0).pw_dir
PRIVATE = (HOME, "/tmp", "/run")  # noqa: S108 - where they are on every machine
# Folders below these hide those of the same path on the real machine, except for what machines share.
IN_NAMESPACES = """\
set -e
mount --make-rprivate /
hostname "$name"
mount --bind "$folder/../hosts" /etc/hosts
mount -t proc proc /proc
mount -t tmpfs -o size=1g,mode=1777 shm /dev/shm
for path in $shared; do mkdir -p "$folder/own$path"; mount --bind "$path" "$folder/own$path"; done
for path in $private; do mount --rbind "$folder/own$path" "$path"; done
exec "$server" -D -e -f /dev/null -p "$port" -h "$home/.ssh/host" -o ListenAddress="$address" -o PidFile=none \
    -o PermitRootLogin=yes -o StrictModes=no -o UsePAM=no -o AuthorizedKeysFile="$home/.ssh/key.pub"
"""


@dataclass(frozen=True)
class Machine:
    """One machine, as its namespaces and its server.

    Args:
        address: On loopback, where its server listens.
        process: Ends it, with all its processes, when killed.
    """

    address: str
    process: "subprocess.Popen[bytes]"

    def run(self, command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command there, in a login shell."""
        (first,) = psutil.Process(self.process.pid).children()
        enter = ["nsenter", f"--target={first.pid}", "--mount", "--uts", "--pid"]
        # All that a login has, and nothing of this process.
        environment = {"HOME": HOME, "USER": "root", "TERM": "dumb", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.run(
            [*enter, "bash", "--login", "-c", f". ~/.bashrc; cd; {command}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )

    def others(self) -> list[str]:
        """Return the names of the processes there that are none of its server, one for each."""
        commands = [command for process in below(self.process) if alive(process) and (command := _command(process))]
        names = [Path(command[0]).name for command in commands]
        return [name for name in names if not name.startswith("sshd")]

    def has(self, beginning: str) -> bool:
        """True if a process there has a name that begins so."""
        return any(name.startswith(beginning) for name in self.others())


def _command(process: psutil.Process) -> list[str]:
    """Return the words of a command, none of a process that has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@contextmanager
def ssh_machines(folder: Path, number: int, environment: dict[str, str]) -> Iterator[list[Machine]]:
    """Run machines until the block ends; each reaches every other by ssh, as root. It needs root and namespaces.

    Args:
        folder: Where what they have of their own is kept; all of them see it.
        number: How many.
        environment: Variables of their login shells.
    """
    for program in (SERVER, "ssh-keygen", "rsync", "unshare", "nsenter"):
        assert shutil.which(program), f"{program} is not installed; .ci/ssh installs the server of ssh, and rsync"
    probe = ["unshare", "--mount", "--uts", "--pid", "--fork", "hostname", "machine0"]
    allowed = subprocess.run(probe, capture_output=True, text=True, check=False)
    assert allowed.returncode == 0, f"machines need root and mount, UTS and PID namespaces: {allowed.stderr}"

    port, addresses = unused_port(), [f"127.0.0.{20 + index}" for index in range(number)]
    names = "".join(f"{address} machine{index}\n" for index, address in enumerate(addresses))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    # The interpreter and the code too, where they are below a folder that each machine has for itself.
    wanted = {str(folder), str(ROOT), sys.prefix, sys.base_prefix}
    shared = [path for path in sorted(wanted) if path.startswith(tuple(f"{one}/" for one in PRIVATE))]
    with ExitStack() as stack:
        machines = []
        for index, address in enumerate(addresses):
            own = folder / f"machine{index}"
            _furnish(own / "own", key, port, environment)
            variables = {"name": own.name, "folder": own, "port": port, "address": address, "server": SERVER}
            variables |= {"shared": " ".join(shared), "private": " ".join(PRIVATE), "home": HOME}
            assignments = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in variables.items())
            log = stack.enter_context((folder / f"machine{index}.log").open("w"))
            isolated = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
            process = subprocess.Popen([*isolated, "bash", "-c", assignments + IN_NAMESPACES], stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            machines.append(Machine(address, process))
            until(lambda: "listening" in (folder / f"machine{index}.log").read_text(), process)  # noqa: B023
        yield machines


def _furnish(own: Path, key: Path, port: int, environment: dict[str, str]) -> None:
    """Make the home of root and the other folders of a machine."""
    home = own / HOME.lstrip("/")
    ssh = home / ".ssh"
    for made in (ssh, own / "tmp", own / "run" / "sshd"):
        made.mkdir(parents=True, mode=0o700)
    (own / "tmp").chmod(0o1777)
    (own / "run" / "sshd").chmod(0o755)
    for name in ("key", "key.pub"):
        shutil.copy(key.with_name(name), ssh / name)
    shutil.copy(key, ssh / "host")
    (ssh / "config").write_text(f"Port {port}\nIdentityFile ~/.ssh/key\n")
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    (home / ".bashrc").write_text(exports)
