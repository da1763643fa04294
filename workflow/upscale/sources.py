"""The volumes that `upscale` is given: paths, a BIDS dataset, or a folder of DICOM files, whose series it converts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from configs.errors import InputError
from tasks.files.bids import anatomical_images, is_dataset, require_own
from tasks.files.outputs import without_outputs
from tasks.files.selection import expand_inputs, findable, is_dicom_folder
from tasks.volume.dicom import convert_dicom
from tasks.volume.nifti import open_volume
from workflow.terminal.progress import waiting

CONVERTED = "converted"  # folder in that of the outputs
LABEL = re.compile(r"(sub-)?[0-9A-Za-z+]+")


@dataclass(frozen=True)
class Sources:
    """Volumes to super-resolve.

    Args:
        paths: Of the files.
        dataset: Root of the BIDS dataset that they are from, if they are from one.
    """

    paths: list[Path]
    dataset: Path | None = None


def find_sources(
    given: Sequence[str],
    out: Path | None,
    console: Console,
    *,
    participants: Sequence[str] = (),
    series: Sequence[int] = (),
    overwrite: bool = False,
) -> Sources:
    """Find the volumes, and convert those of DICOM series into the folder of the outputs.

    Args:
        given: Files, folders, globs, lists, the root of a BIDS dataset, or a folder of DICOM files.
        out: Folder for the outputs.
        console: Receives the list of the series.
        participants: Labels of a BIDS dataset; further ones may follow among `given`, as in BIDS apps.
        series: Numbers of the DICOM series to convert; empty for all.
        overwrite: Replace what an earlier run has converted of other files.

    Raises:
        InputError: There are none, or they cannot be used together.
    """
    if participants:
        labels = [one for one in given if LABEL.fullmatch(one) and not findable(Path(one)).exists()]
        participants, given = [*participants, *labels], [one for one in given if one not in labels]
    paths = [findable(Path(one)) for one in given]
    datasets, studies = list(filter(is_dataset, paths)), list(filter(is_dicom_folder, paths))
    if participants and not datasets:
        raise InputError("Cannot choose participants: no BIDS dataset is given.", "Leave --participant-label out.")
    if series and not studies:
        raise InputError("Cannot choose series: no folder of DICOM files is given.", "Leave --series out.")
    if not datasets and not studies:
        found = expand_inputs(given)
        return Sources(without_outputs(found) if out is None else found)
    (first,) = (datasets or studies)[:1]
    if len(paths) > 1:
        raise InputError(f"Cannot use {first.name} together with other volumes.", "Give it alone.")
    if out is None:
        remedy = f"Give --out {first}/derivatives/voxlift." if datasets else "Give --out with a folder for the outputs."
        raise InputError(f"Cannot write the outputs of {first.name} next to its files.", remedy)
    if datasets:
        require_own(out)
        return Sources(anatomical_images(first, participants), first)
    with waiting(console, "Converting DICOM files"):
        done = convert_dicom(first, out / CONVERTED, only=series, overwrite=overwrite)
    if done.left_out:
        warning = f"{first.name}: {done.left_out} DICOM files are damaged or hold no image, and are left out"
        console.print(warning, style="yellow", markup=False, soft_wrap=True)
    for one in done.series:
        scan = open_volume(one.path)
        voxels, mm = ("x".join(f"{value:.4g}" for value in sizes) for sizes in (scan.grid.shape, scan.grid.spacing))
        times = f", {scan.header.n_timepoints} time points" if scan.header.n_timepoints > 1 else ""
        line = f"series {one.number}: {one.modality or 'images'}, {voxels} voxels at {mm} mm{times}, as {CONVERTED}/"
        console.print(line + one.path.name, markup=False, soft_wrap=True)
    return Sources([one.path for one in done.series])
