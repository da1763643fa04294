"""DICOM series, converted to NIfTI by `dcm2niix`, an extra."""

import filecmp
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError, ReadError
from tasks.files.atomic import replacing

ENDING = ".nii.gz"
SEARCH_DEPTH = 5  # folders below the given one, as dcm2niix goes
# dcm2niix writes a second file where it has corrected slices of unequal distances or a tilted gantry.
CORRECTED = re.compile(r"(_Eq|_Tilt|_Eq_Tilt)_\d+$")
CONVERTED = re.compile(rb"^Convert (\d+) DICOM", re.MULTILINE)  # as dcm2niix reports each volume


@dataclass(frozen=True)
class Series:
    """One converted volume of a series.

    Args:
        number: Of the series in its study.
        modality: "MR", "CT", …; empty where the files do not say.
        path: The NIfTI file; its BIDS sidecar lies next to it.
    """

    number: int
    modality: str
    path: Path


@dataclass(frozen=True)
class Conversion:
    """The result of `dcm2niix` on a folder.

    Args:
        series: One for each volume, by number.
        left_out: DICOM files of the folder that are in none of its volumes: damaged ones, and those without an image.
    """

    series: tuple[Series, ...]
    left_out: int


def is_dicom(path: Path) -> bool:
    """Check the first bytes of a file for those of DICOM."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def holds_dicom(folder: Path) -> bool:
    """Search a folder and those below it for a DICOM file."""
    return any(True for _ in _dicom_files(folder))


def _dicom_files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        if len(Path(place).relative_to(folder).parts) >= SEARCH_DEPTH:
            folders.clear()
        paths = (Path(place, name) for name in names)
        yield from (path for path in paths if path.is_file() and is_dicom(path))


def convert_dicom(folder: Path, out: Path, *, only: Collection[int] = (), overwrite: bool = False) -> Conversion:
    """Convert the series of a folder and of those below it to NIfTI.

    Equal files give equal volumes, named `series-NUMBER.nii.gz`. Names, headers and sidecars hold no field about the
    patient; `dcm2niix` leaves them out. A volume that is there already is kept if it is the same.

    Args:
        folder: Holds DICOM files.
        out: Folder for the volumes and their sidecars; made only once all are converted.
        only: Numbers of the series to convert; empty for all.
        overwrite: Replace other volumes under these names.

    Raises:
        InputError: `dcm2niix` is not installed or converts nothing, a wanted series is not there, or a volume is
            already there with another content.
    """
    try:
        import dcm2niix  # noqa: PLC0415 - an extra
    except ImportError:
        reason = "it holds DICOM files, which dcm2niix converts, and that is not installed"
        raise ReadError(folder.name, reason, "Install it with: pip install 'voxlift[dicom]'.") from None
    with tempfile.TemporaryDirectory(prefix="voxlift-") as place:
        # Without a settings file of the user, compressed without a time in it, and with an anonymous sidecar.
        options = ["-g", "i", "-z", "i", "-b", "y", "-ba", "y", "-c", "", "-f", "series-%s"]
        done = subprocess.run(  # noqa: S603 - the program of the package, without a shell
            [dcm2niix.bin, *options, "-o", place, str(folder.absolute())], capture_output=True, check=False
        )
        found = sorted(_converted(Path(place)), key=lambda series: (series.number, series.path.name))
        if not found:
            reason = f"dcm2niix finds no series of images in it (status {done.returncode})"
            raise ReadError(folder.name, reason, "Check that its files are whole and hold images.")
        numbers = {series.number for series in found}
        if absent := sorted(set(only) - numbers):
            raise InputError(
                f"Cannot find series {_and(absent)} in {folder.name}: it holds series {_and(sorted(numbers))}.",
                "Choose of these.",
            )
        wanted = [series for series in found if not only or series.number in only]
        for series in wanted:
            kept = out / series.path.name
            if not overwrite and kept.exists() and not filecmp.cmp(kept, series.path, shallow=False):
                raise InputError(
                    f"Cannot write {kept.name}: another volume of this name is in {out.name} already.",
                    "Choose another output folder.",
                )
        used = sum(map(int, CONVERTED.findall(done.stdout)))
        left_out = max(0, sum(1 for _ in _dicom_files(folder)) - used)
        return Conversion(tuple(Series(one.number, one.modality, _keep(one.path, out)) for one in wanted), left_out)


def _converted(folder: Path) -> Iterator[Series]:
    """List the volumes that dcm2niix has written, without those that it has corrected in another file."""
    paths = {path.name.removesuffix(ENDING): path for path in folder.glob(f"*{ENDING}")}
    replaced = {CORRECTED.sub("", stem) for stem in paths if CORRECTED.search(stem)}
    for stem, path in paths.items():
        if stem not in replaced:
            sidecar = _sidecar(path)
            said = json.loads(sidecar.read_text(errors="replace")) if sidecar.is_file() else {}
            number = re.match(r"series-(\d+)", stem)
            yield Series(int(number[1]) if number else 0, str(said.get("Modality", "")), path)


def _sidecar(volume: Path) -> Path:
    return volume.with_name(volume.name.removesuffix(ENDING) + ".json")


def _keep(volume: Path, out: Path) -> Path:
    """Copy a volume and its sidecar into the output folder."""
    for source in (_sidecar(volume), volume):
        if source.is_file():
            with replacing(out / source.name) as partial:
                shutil.copyfile(source, partial)
    return out / volume.name


def _and(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
