"""Selection of volumes: files, folders, globs and lists in text or CSV files, expanded to paths."""

import csv
import glob
from collections.abc import Sequence
from pathlib import Path

from configs.errors import InputError
from tasks.files.bids import anatomical_images, is_dataset
from tasks.files.outputs import PAIRS, split_name, time_point
from tasks.files.trees import is_stored, is_zarr
from tasks.volume.dicom import holds_dicom, is_dicom

LISTS = {".txt": None, ".list": None, ".csv": ",", ".tsv": "\t"}
PATH_COLUMNS = ("path", "volume", "input", "image", "file", "filename", "scan")


def expand_inputs(given: Sequence[str | Path]) -> list[Path]:
    """Expand files, folders, globs and lists to the paths of volumes, in order, each once.

    A folder means the OME-Zarr image that it is, the anatomical images of the BIDS dataset that it is, or else the
    volumes directly in it, sorted; a glob (`*`, `?`, `[…]`, `**`) what it matches, sorted; a `.txt` file one path a
    line (`#` begins a comment); a `.csv` or `.tsv` file the column called path, volume, input, image, file, filename or
    scan, or its only column. Paths in a list are relative to the list. Either file of a pair means the pair;
    `series.nii.gz[3]` means one time point of a file.

    Raises:
        InputError: A list cannot be read, or a folder, glob or list yields no volume, or DICOM files.
    """
    found = [path for one in given for path in _expand(findable(Path(one)))]
    if not found:
        raise InputError("Cannot find volumes: none were given.", "Name files, folders, globs or lists of paths.")
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(_pair_key(path), path)
    return list(once.values())


def _expand(path: Path) -> list[Path]:
    if time_point(path)[0].is_file() and time_point(path)[1] is not None:
        return [path]
    if path.is_dir():
        if is_zarr(path):
            return [path]
        if is_dataset(path):
            return anatomical_images(path)
        found, problem = sorted(filter(_is_volume, path.iterdir())), "no volume is in it; name a folder of volumes"
        if not found and holds_dicom(path):
            problem = "it holds DICOM files; convert its series to NIfTI first, as `voxlift upscale` does"
    elif path.is_file() and path.suffix.lower() in LISTS:
        found, problem = _listed(path), "it lists no path; name one a line"
    elif path.is_file() and not split_name(path.name)[1] and is_dicom(path):
        raise InputError(
            f"Cannot read {path.name}: it is one file of a DICOM series.", "Name the folder of the series."
        )
    elif path.exists() or not glob.has_magic(str(path)):
        return [path]  # its inspection reports what is wrong with it
    else:
        matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        found, problem = sorted(filter(_is_volume, matches)), "no volume matches it; check the pattern"
    if not found:
        raise InputError(f"Cannot find volumes in {path.name}: {problem}.")
    return found


def is_dicom_folder(path: Path) -> bool:
    """Check if a path is a folder of DICOM files: one that holds some and no volumes itself, and is no BIDS dataset."""
    return path.is_dir() and not is_dataset(path) and not any(map(_is_volume, path.iterdir())) and holds_dicom(path)


def _is_volume(path: Path) -> bool:
    return bool(split_name(path.name)[1]) and not path.name.startswith(".") and is_stored(path)


def _listed(path: Path) -> list[Path]:
    """Read the paths of a list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError):
        raise InputError(f"Cannot read the list {path.name}: it is no UTF-8 text.", "Save it as such.") from None
    delimiter = LISTS[path.suffix.lower()]
    if delimiter is None:
        named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    else:
        try:
            named = _column(path, list(csv.reader(filter(str.strip, lines), delimiter=delimiter)))
        except csv.Error as error:
            raise InputError(f"Cannot read the list {path.name}: {error}.", "Save it anew as CSV.") from None
    if any("\0" in name for name in named):
        raise InputError(
            f"Cannot read the list {path.name}: it holds a path with a zero byte.", "Save it anew as text."
        )
    return [findable(path.parent / name) for name in named]


def findable(path: Path) -> Path:
    """Return the path; InputError if the file system cannot look it up, for example because its name is too long."""
    try:
        path.exists()
    except OSError as error:
        raise InputError(f"Cannot look for {path.name[:40]}…: {error.strerror}.", "Check the path.") from None
    return path


def _column(path: Path, rows: list[list[str]]) -> list[str]:
    """Return the column of a table that holds the paths."""
    titles = [title.strip().lower() for title in rows[0]] if rows else []
    column = next((titles.index(title) for title in PATH_COLUMNS if title in titles), None)
    if column is None and max(map(len, rows), default=0) > 1:
        raise InputError(
            f"Cannot read the list {path.name}: one column must be called {', '.join(PATH_COLUMNS[:-1])} or "
            f"{PATH_COLUMNS[-1]}, received {', '.join(titles)[:200]}."
        )
    place, body = (0, rows) if column is None else (column, rows[1:])
    return [name for row in body if len(row) > place and (name := row[place].strip())]


def _pair_key(path: Path) -> Path:
    """Return one key for both files of a pair; links to one file are separate volumes, with the names of the links."""
    stem, suffix = split_name(path.name)
    first, _, packing = suffix[1:].partition(".")
    header, folder = PAIRS.get(f".{first}"), path.parent.resolve()
    if header is None:
        return folder / path.name
    twins = (path.with_name(stem + end) for end in (header, header.upper(), f"{header}.{packing}"))
    return folder / next((twin.name for twin in twins if twin.exists()), path.name)
