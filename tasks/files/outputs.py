"""Output files: their names, the same for the writer, a resumed run and the record, and whether they can be written."""

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from configs.errors import InputError
from tasks.files.trees import ZARR_SUFFIX

SUFFIXES = (
    *(".nii.gz", ".nii.bz2", ".nii.zst", ".nii", ".img.gz", ".hdr.gz", ".img.bz2", ".hdr.bz2", ".img", ".hdr"),
    *(".mgz", ".mgh", ".mnc", ".mnc.gz", ".brik.gz", ".brik.bz2", ".brik", ".head", ".par", ".rec"),
    *(".nrrd", ".nhdr", ".mha", ".mhd", ".ome.zarr", ".zarr"),
)
# The two files of a pair are one volume, which is named by the second.
PAIRS = {".img": ".hdr", ".brik": ".head", ".rec": ".par"}
MAX_NAME_BYTES = 230  # file systems allow 255, and a partial file has a longer name
TIME_POINT = re.compile(r"(.+)\[(\d+)\]")
BIDS = re.compile(r"sub-[a-zA-Z0-9+]+(_[a-zA-Z]+-[a-zA-Z0-9+]+)*_[a-zA-Z0-9]+")
OWN_LABEL = re.compile(r"(_rec-[a-zA-Z0-9+]*voxlift|_desc-[a-zA-Z0-9+]*sr)(?=_)")
# Entities of a BIDS name that stand before rec, in the order of the BIDS schema.
BEFORE_REC = ("sub", "tpl", "cohort", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain")


def split_name(name: str) -> tuple[str, str]:
    """Split a file name into stem and the suffix of a volume format, "" if it has none.

    >>> split_name("sub-01_T1w.nii.gz"), split_name("notes.txt")
    (('sub-01_T1w', '.nii.gz'), ('notes.txt', ''))
    """
    suffix = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name.removesuffix(name[len(name) - len(suffix) :]) if suffix else name, suffix


def time_point(path: Path) -> tuple[Path, int | None]:
    """Split the path of a time point into that of its file and its number, from 0; None for a path without one.

    >>> time_point(Path("series.nii.gz[3]"))
    (PosixPath('series.nii.gz'), 3)
    """
    found = TIME_POINT.fullmatch(path.name)
    return (path, None) if found is None or path.exists() else (path.with_name(found[1]), int(found[2]))


def output_name(source: str) -> str:
    """Name the restored volume of a source: BIDS names get `rec-voxlift`, others `_sr`; as NIfTI, or as OME-Zarr.

    An uncompressed source gives an uncompressed output, OME-Zarr gives OME-Zarr. An existing `rec` label is kept,
    followed by `voxlift`.

    >>> output_name("sub-01_T1w.nii.gz"), output_name("sub-01_acq-lo_run-2_T2w.nii")
    ('sub-01_rec-voxlift_T1w.nii.gz', 'sub-01_acq-lo_rec-voxlift_run-2_T2w.nii')
    >>> output_name("sub-01_rec-norm_T1w.nii"), output_name("scan.mgz"), output_name("series.nii[3]")
    ('sub-01_rec-normvoxlift_T1w.nii', 'scan_sr.nii.gz', 'series-3_sr.nii')
    """
    stem, ending = _stem_and_ending(source)
    if not BIDS.fullmatch(stem):
        return f"{stem}_sr{ending}"
    *entities, kind = stem.split("_")
    labels = dict(entity.split("-", 1) for entity in entities)
    if "rec" in labels:
        named = [f"rec-{labels['rec']}voxlift" if e.startswith("rec-") else e for e in entities]
    else:
        place = sum(entity.split("-")[0] in BEFORE_REC for entity in entities)
        named = [*entities[:place], "rec-voxlift", *entities[place:]]
    return "_".join([*named, kind]) + ending


def derivative_name(source: str) -> str:
    """Name the restored image of a BIDS dataset in its derivatives: with the entity `desc-sr`, the last of a name.

    An existing `desc` label is kept, followed by `sr`.

    >>> derivative_name("sub-01_ses-1_run-2_T1w.nii.gz"), derivative_name("sub-01_desc-preproc_T1w.nii")
    ('sub-01_ses-1_run-2_desc-sr_T1w.nii.gz', 'sub-01_desc-preprocsr_T1w.nii')
    """
    stem, ending = _stem_and_ending(source)
    entities, _, suffix = stem.rpartition("_")
    before, described, label = entities.rpartition("_desc-")
    return f"{before}_desc-{label}sr_{suffix}{ending}" if described else f"{entities}_desc-sr_{suffix}{ending}"


def _stem_and_ending(source: str) -> tuple[str, str]:
    """Return the stem of a source, with the number of a chosen time point, and the ending of its output."""
    file, number = time_point(Path(source))
    stem, suffix = split_name(file.name)
    stem = stem if number is None else f"{stem}-{number}"
    if suffix.endswith(ZARR_SUFFIX):
        return stem, suffix
    return stem, ".nii" if suffix in (".nii", ".img", ".hdr") else ".nii.gz"


def names_output(path: Path) -> bool:
    """Check if a path names one output, by an ending in which volumes are written, and not the folder of several.

    >>> names_output(Path("finer.ome.zarr")), names_output(Path("results"))
    (True, False)
    """
    return path.suffix == ZARR_SUFFIX or (path.name.endswith((".nii", ".nii.gz")) and not path.is_dir())


def sidecar_name(output: str) -> str:
    """Name the JSON file next to an output.

    >>> sidecar_name("scan_sr.nii.gz")
    'scan_sr.json'
    """
    return split_name(output)[0] + ".json"


def page_name(output: str) -> str:
    """Name the QC page next to an output.

    >>> page_name("scan_sr.nii.gz")
    'scan_sr_quality.html'
    """
    return f"{split_name(output)[0]}_quality.html"


def inferred_name(output: str) -> str:
    """Name the file of the inferred detail next to an output: `inferred` follows the label that voxlift has given.

    No output of any source has such a name.

    >>> inferred_name("scan_sr.nii.gz"), inferred_name("sub-01_rec-voxlift_T1w.nii.gz")
    ('scan_sr_inferred.nii.gz', 'sub-01_rec-voxliftinferred_T1w.nii.gz')
    >>> inferred_name("sub-01_desc-sr_T1w.nii.gz")
    'sub-01_desc-srinferred_T1w.nii.gz'
    """
    stem, suffix = split_name(output)
    named, count = OWN_LABEL.subn(r"\1inferred", stem) if BIDS.fullmatch(stem) else (stem, 0)
    return f"{named}{'' if count else '_inferred'}{suffix}"


def output_paths(
    sources: Sequence[Path], folder: Path | None, dataset: Path | None = None, named: Path | None = None
) -> list[Path]:
    """Return the path of each source's restored volume: in the folder, or next to the source where it is None.

    Args:
        sources: Volumes.
        folder: For the outputs.
        dataset: Root of the BIDS dataset that the sources are from: its tree is kept in the folder.
        named: The output of the only source, instead of a folder.

    Raises:
        InputError: Two sources would be written to one file, or one source would be overwritten.
    """
    if named is not None:
        if len(sources) != 1:
            raise InputError(
                f"Cannot write {named.name}: it names one output, and {len(sources)} volumes are given.",
                "Name a folder for the outputs.",
            )
        outputs = [named]
    elif dataset is not None and folder is not None:
        outputs = [folder / one.relative_to(dataset).with_name(derivative_name(one.name)) for one in sources]
    else:
        outputs = [(folder or source.parent) / output_name(source.name) for source in sources]
    inputs = {_real(source) for source in sources}
    claims: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for source, output in zip(sources, outputs, strict=True):
        # By the sidecar, which .nii and .nii.gz share; some file systems ignore case and the composition of letters.
        name = normalize("NFC", sidecar_name(output.name)).casefold()
        claims[_real(output.parent), name].append(source)
        for path in (output, output.with_name(inferred_name(output.name))):
            if _real(path) in inputs:
                raise InputError(
                    f"Cannot write {path.name}: it would overwrite an input.", "Choose another output folder."
                )
    for claimants in claims.values():
        if len(claimants) > 1:
            who = ", ".join("/".join(claimant.parts[-2:]) for claimant in claimants)
            stem, _ = split_name(output_name(claimants[0].name))
            raise InputError(
                f"Cannot write {stem}: {len(claimants)} inputs would become this one output ({who}).",
                "Rename them or upscale them into separate folders.",
            )
    return outputs


def without_outputs(sources: Sequence[Path]) -> list[Path]:
    """Leave out the sources that are outputs of the others, next to which outputs are written."""
    named = [source.parent / output_name(source.name) for source in sources]
    outputs = {_real(path) for output in named for path in (output, output.with_name(inferred_name(output.name)))}
    return [source for source in sources if _real(source) not in outputs]


def _real(path: Path) -> Path:
    """Resolve a path; `Path.resolve` raises an error on a link to itself."""
    return Path(os.path.realpath(path))


def check_destination(output: Path, size: int) -> None:
    """Refuse an output that cannot be written, before any work for it.

    Args:
        output: A file that will be written; its folder need not exist yet.
        size: Bytes that it takes at least, temporary files included.

    Raises:
        InputError: Its name is too long, or its folder is a file, is not writable, or is on a disk without room.
    """
    length = len(os.fsencode(output.name))
    home = next(folder for folder in output.absolute().parents if folder.exists())
    remedy = "Choose another output folder."
    if length > MAX_NAME_BYTES:
        problem = f"a name may have {MAX_NAME_BYTES} bytes, this one has {length}"
        remedy = "Rename the input."
    elif not home.is_dir():
        problem = f"{home.name} is a file, not a folder"
    elif not os.access(home, os.W_OK | os.X_OK):
        problem = f"the folder {home.name} may not be written"
    elif size > (free := shutil.disk_usage(home).free):
        problem = f"it takes at least {size / 2**20:.0f} MiB until it is done, and {free / 2**20:.0f} MiB are free"
        remedy = "Choose a smaller scale, or an output folder on another disk."
    else:
        return
    raise InputError(f"Cannot write {output.name}: {problem}.", remedy)
