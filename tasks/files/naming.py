"""Names of outputs: one function for the writer, the resumer and the record."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from configs.errors import InputError

SUFFIXES = (
    *(".nii.gz", ".nii.bz2", ".nii.zst", ".nii", ".img.gz", ".hdr.gz", ".img.bz2", ".hdr.bz2", ".img", ".hdr"),
    *(".mgz", ".mgh", ".mnc", ".mnc.gz", ".brik.gz", ".brik.bz2", ".brik", ".head", ".par", ".rec"),
)
# The two files of a pair are one volume; it goes by the second name.
PAIRS = {".img": ".hdr", ".brik": ".head", ".rec": ".par"}
BIDS = re.compile(r"sub-[a-zA-Z0-9+]+(_[a-zA-Z]+-[a-zA-Z0-9+]+)*_[a-zA-Z0-9]+")
# Entities of a BIDS name that stand before rec, in the order of the BIDS schema.
BEFORE_REC = ("sub", "tpl", "cohort", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain")


def split_name(name: str) -> tuple[str, str]:
    """Split a file name into stem and the suffix of a volume format, "" if it has none.

    >>> split_name("sub-01_T1w.nii.gz"), split_name("notes.txt")
    (('sub-01_T1w', '.nii.gz'), ('notes.txt', ''))
    """
    suffix = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name.removesuffix(name[len(name) - len(suffix) :]) if suffix else name, suffix


def output_name(source: str) -> str:
    """Name the restored volume of a source: BIDS names get `rec-voxlift`, others `_sr`; always NIfTI.

    An uncompressed source gives an uncompressed output. A name that has a `rec` keeps its label before ours.

    >>> output_name("sub-01_T1w.nii.gz"), output_name("sub-01_acq-lo_run-2_T2w.nii")
    ('sub-01_rec-voxlift_T1w.nii.gz', 'sub-01_acq-lo_rec-voxlift_run-2_T2w.nii')
    >>> output_name("sub-01_rec-norm_T1w.nii"), output_name("scan.mgz")
    ('sub-01_rec-normvoxlift_T1w.nii', 'scan_sr.nii.gz')
    """
    stem, suffix = split_name(source)
    ending = ".nii" if suffix in (".nii", ".img", ".hdr") else ".nii.gz"
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


def sidecar_name(output: str) -> str:
    """Name the JSON file next to an output.

    >>> sidecar_name("scan_sr.nii.gz")
    'scan_sr.json'
    """
    return split_name(output)[0] + ".json"


def output_paths(sources: Sequence[Path], folder: Path) -> list[Path]:
    """Return where each source's restored volume goes.

    Raises:
        InputError: Two sources would be written to one file, or one source would be overwritten.
    """
    outputs = [folder / output_name(source.name) for source in sources]
    inputs = {source.resolve() for source in sources}
    claims: dict[str, list[Path]] = defaultdict(list)
    for source, output in zip(sources, outputs, strict=True):
        # By the sidecar, which .nii and .nii.gz share; case and composed letters differ on some file systems only.
        claims[normalize("NFC", sidecar_name(output.name)).casefold()].append(source)
        if output.resolve() in inputs:
            raise InputError(
                f"Cannot write {output.name}: it would overwrite an input.", "Choose another output folder."
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
