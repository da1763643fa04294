"""Weights that ship with the package: found inside it, never downloaded, and checked by digest."""

from importlib.resources import files

from configs.errors import InputError
from tasks.artifacts.network_file import NetworkFile, parse_network

ISOTROPIC, THICK = "universal2x.keras", "universalthick.keras"
DIGESTS = "SHA256SUMS"


def shipped_network(*, thick: bool = False) -> NetworkFile:
    """Read the network that restores 2x along all axes, or thick slices, however a scan was acquired.

    Raises:
        InputError: The installed file is not the one that was shipped.
    """
    folder, name = files("models") / "weights", THICK if thick else ISOTROPIC
    network = parse_network(name, (folder / name).read_bytes())
    if f"{network.digest}  {name}" not in (folder / DIGESTS).read_text().splitlines():
        raise InputError(f"Cannot use the shipped weights {name}: the file has changed.", "Install voxlift again.")
    return network
