"""Weights that ship with the package: found inside it, never downloaded, and checked by digest."""

from importlib.resources import files

from configs.errors import InputError
from tasks.artifacts.network_file import NetworkFile, parse_network

NAME = "universal2x.keras"
DIGESTS = "SHA256SUMS"


def shipped_network() -> NetworkFile:
    """Read the network that restores 2x along all axes, however a scan was acquired.

    Raises:
        InputError: The installed file is not the one that was shipped.
    """
    folder = files("models") / "weights"
    network = parse_network(NAME, (folder / NAME).read_bytes())
    if f"{network.digest}  {NAME}" not in (folder / DIGESTS).read_text().splitlines():
        raise InputError(f"Cannot use the shipped weights {NAME}: the file has changed.", "Install voxlift again.")
    return network
