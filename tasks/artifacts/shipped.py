"""Weights that ship with the package: found inside it, never downloaded, and checked by digest.

`python -m tasks.artifacts.shipped MODEL.keras …` takes trained models over into the package.
"""

import hashlib
import io
import sys
import zipfile
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from configs.degradation import Degradation, Profile
from configs.errors import InputError
from tasks.artifacts.network_file import NetworkFile, parse_network
from tasks.files.atomic import replacing

ISOTROPIC, THICK = "universal2x.keras", "universalthick.keras"
# For scans of which the acquisition is known: 2x along all axes, and thick slices.
EXPERTS: Mapping[Profile, str] = {"kspace": "kspace2x.keras", "box": "box2x.keras"}
THICK_EXPERTS: Mapping[Profile, str] = {"box": "boxthick.keras"}
BLURRED, BLURS = "iso2x.keras", (0.75, 1.25)  # FWHM of a blur that comes with a box, in voxels of the scan
DIGESTS, WEIGHTS = "SHA256SUMS", "model.weights.h5"
FINENESS = 36  # steps of rounding in the standard deviation of an array
SMALL = 4096  # weights of an array that the index of compressed data would make larger


def shipped_network(*, thick: bool = False, known: Degradation | None = None) -> NetworkFile:
    """Read the network that restores 2x along all axes, or thick slices.

    Args:
        thick: For thick slices.
        known: From the wanted grid to the scan, if that is certain: for some acquisitions there are experts.

    Raises:
        InputError: The installed file is not the one that was shipped.
    """
    return _installed(_for_acquisition(known, thick=thick))


@cache
def _installed(name: str) -> NetworkFile:
    folder = files("models") / "weights"
    network = parse_network(name, (folder / name).read_bytes())
    if f"{network.digest}  {name}" not in (folder / DIGESTS).read_text().splitlines():
        raise InputError(f"Cannot use the shipped weights {name}: the file has changed.", "Install voxlift again.")
    return network


def _for_acquisition(known: Degradation | None, *, thick: bool) -> str:
    default, experts = (THICK, THICK_EXPERTS) if thick else (ISOTROPIC, EXPERTS)
    if known is None or not (thick or known.is_isotropic):
        return default
    axis = known.depth
    if (axis.gap, axis.apodisation, axis.zero_filling) != (0, "none", 1):
        return default
    if not any(each.blur_fwhm for each in known.axes):
        return experts.get(axis.profile, default)
    if not thick and axis.profile == "box" and BLURS[0] <= axis.blur_fwhm / axis.factor <= BLURS[1]:
        return BLURRED
    return default


def compact(content: bytes) -> bytes:
    """Return a `.keras` file with its weights rounded and compressed; Keras loads float32."""
    stored = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as copy:
        for name in archive.namelist():
            data = archive.read(name)
            entry = zipfile.ZipInfo(name)  # of no date
            copy.writestr(entry, _rounded_weights(data) if name == WEIGHTS else data, zipfile.ZIP_DEFLATED)
    return stored.getvalue()


def _rounded_weights(weights: bytes) -> bytes:
    rounded_file = io.BytesIO()
    with h5py.File(io.BytesIO(weights)) as given, h5py.File(rounded_file, "w", libver="latest") as copy:

        def take_over(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                values = rounded(item[()])
                packed = {"chunks": values.shape, "compression": "gzip", "compression_opts": 9, "shuffle": True}
                made = copy.create_dataset(name, data=values, **(packed if values.size > SMALL else {}))
            else:
                made = copy.require_group(name)
            made.attrs.update(item.attrs)

        given.visititems(take_over)
    return rounded_file.getvalue()


def rounded(weights: NDArray[np.floating]) -> NDArray[np.float16]:
    """Round weights to multiples of a power of two near a 36th of their standard deviation, in float16.

    So few numbers compress well, and their error is the same wherever a weight lies.

    >>> rounded(np.array([-1.0, 0.01, 0.03, 1.0])).tolist()
    [-1.0, 0.015625, 0.03125, 1.0]
    """
    deviation = float(np.std(weights, dtype=np.float64))
    if not deviation:
        return np.asarray(weights, np.float16)
    step = 2.0 ** np.round(np.log2(deviation / FINENESS))
    # By NumPy: the conversion of HDF5 rounds some values wrong.
    return np.asarray(np.round(weights / step) * step, np.float16)


def ship(models: list[Path], folder: Path) -> None:
    """Write models into a folder in their compact form, under their names, and the digests of all that are there."""
    for model in models:
        with replacing(folder / model.name) as partial:
            partial.write_bytes(compact(model.read_bytes()))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.keras"))}
    with replacing(folder / DIGESTS) as partial:
        partial.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


if __name__ == "__main__":
    ship([Path(given) for given in sys.argv[1:]], Path(str(files("models") / "weights")))
