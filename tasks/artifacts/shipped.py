"""Weights that ship with the package: found inside it, never downloaded, and checked by digest.

`python -m tasks.artifacts.shipped INTO MODEL.keras FOLDER …` writes trained models into a folder as they ship; a folder
of models stands for their mean.
"""

import hashlib
import io
import sys
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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


def compact(*contents: bytes) -> bytes:
    """Return a `.keras` file with its weights rounded and compressed; Keras loads float32.

    Of several trainings that went on from the same weights, it has the mean of the weights, which restores better than
    each of them (Wortsman et al., Model soups, ICML 2022), and all else of the first.
    """
    stored = io.BytesIO()
    archives = [zipfile.ZipFile(io.BytesIO(content)) for content in contents]
    with zipfile.ZipFile(stored, "w") as copy:
        for name in archives[0].namelist():
            data = [archive.read(name) for archive in archives]
            entry = zipfile.ZipInfo(name)  # of no date
            # Of rounded weights it takes an eighth less than deflate.
            copy.writestr(entry, _rounded_mean(data) if name == WEIGHTS else data[0], zipfile.ZIP_BZIP2)
    return stored.getvalue()


def _rounded_mean(weights: Sequence[bytes]) -> bytes:
    rounded_file = io.BytesIO()
    with ExitStack() as stack:
        given, *others = (stack.enter_context(h5py.File(io.BytesIO(each))) for each in weights)
        copy = stack.enter_context(_timeless_file(rounded_file))

        def take_over(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                several = np.array([each[name][()] for each in (given, *others)], np.float64)
                values = rounded(np.asarray(several.mean(axis=0)))
                made = copy.create_dataset(name, data=values)
            else:
                made = h5py.Group(h5py.h5g.create(copy.id, name.encode(), gcpl=_timeless(h5py.h5p.GROUP_CREATE)))
            made.attrs.update(item.attrs)

        given.visititems(take_over)
    return rounded_file.getvalue()


def _timeless_file(buffer: io.BytesIO) -> h5py.File:
    """Make a HDF5 file that holds no times: the same content has the same bytes."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, buffer)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    return h5py.File(h5py.h5f.create(b"weights", h5py.h5f.ACC_TRUNC, _timeless(h5py.h5p.FILE_CREATE), access))


def _timeless(kind: h5py.h5p.PropClassID) -> h5py.h5p.PropOCID:
    properties = h5py.h5p.create(kind)
    properties.set_obj_track_times(False)
    return properties


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
    """Write models into a folder in their compact form, under their names, and the digests of all that are there.

    Args:
        models: Files, and folders of files that stand for the mean of their weights, under the name of the folder.
        folder: Of the weights that ship.
    """
    for model in models:
        trained = sorted(model.glob("*.keras")) if model.is_dir() else [model]
        with replacing(folder / f"{model.stem}.keras") as partial:
            partial.write_bytes(compact(*(each.read_bytes() for each in trained)))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.keras"))}
    with replacing(folder / DIGESTS) as partial:
        partial.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


if __name__ == "__main__":
    into, *given = map(Path, sys.argv[1:])
    ship(given, into)
