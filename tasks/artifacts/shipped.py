"""Weights that ship with the package: found inside it, never downloaded, and checked by digest.

`python -m tasks.artifacts.shipped MODEL.keras …` takes trained models over into the package.
"""

import hashlib
import io
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np

from configs.errors import InputError
from tasks.artifacts.network_file import NetworkFile, parse_network
from tasks.files.atomic import replacing

ISOTROPIC, THICK = "universal2x.keras", "universalthick.keras"
DIGESTS, WEIGHTS = "SHA256SUMS", "model.weights.h5"


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


def half_precision(content: bytes) -> bytes:
    """Return a `.keras` file with its weights stored as float16, which takes half the space; Keras loads float32."""
    stored = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(stored, "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            copy.writestr(zipfile.ZipInfo(name), _halved(data) if name == WEIGHTS else data)
    return stored.getvalue()


def _halved(weights: bytes) -> bytes:
    halved = io.BytesIO()
    with h5py.File(io.BytesIO(weights)) as given, h5py.File(halved, "w") as copy:

        def take_over(name: str, item: h5py.Group | h5py.Dataset) -> None:
            made = (
                # By NumPy: the conversion of HDF5 rounds some values wrong.
                copy.create_dataset(name, data=item[()].astype(np.float16))
                if isinstance(item, h5py.Dataset)
                else copy.require_group(name)
            )
            made.attrs.update(item.attrs)

        given.visititems(take_over)
    return halved.getvalue()


def ship(models: list[Path], folder: Path) -> None:
    """Write models into a folder in half precision, under their names, and the digests of all that are there."""
    for model in models:
        with replacing(folder / model.name) as partial:
            partial.write_bytes(half_precision(model.read_bytes()))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.keras"))}
    with replacing(folder / DIGESTS) as partial:
        partial.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


if __name__ == "__main__":
    ship([Path(given) for given in sys.argv[1:]], Path(str(files("models") / "weights")))
