"""A catalogue of input that cannot be used: each maker fills a folder and says what to give to the command."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from isal import igzip
from nibabel.testing import data_path

from tests.tasks.images import affine, ramp, save

Maker = Callable[[Path], list[str]]
PACKAGED = Path(str(data_path))
SHAPE = (9, 8, 7)


def good(folder, name="scan.nii", **saved):
    return save(folder / name, ramp(affine(), SHAPE), affine(), **saved)


def patched(folder, *changes, name="scan.nii"):
    """A valid int16 NIfTI-1 file with some bytes of its header replaced: (offset, format, values…)."""
    raw = bytearray(good(folder, "scan.nii", dtype="i2").read_bytes())
    for offset, layout, *values in changes:
        struct.pack_into(layout, raw, offset, *values)
    (folder / "scan.nii").unlink()
    path = folder / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return [str(path)]


def written(folder, name, content):
    (folder / name).write_bytes(content)
    return [str(folder / name)]


def cut(folder, name, share, **saved):
    path = good(folder, name, **saved)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return [str(path)]


def flipped(folder, place):
    path = good(folder, "scan.nii.gz")
    raw = bytearray(path.read_bytes())
    raw[place] ^= 0xFF
    path.write_bytes(raw)
    return [str(path)]


def too_many_time_points(folder):
    nibabel.save(nibabel.Nifti2Image(np.zeros((1, 1, 1, 100_001), np.uint8), affine()), folder / "scan.nii.gz")
    return [str(folder / "scan.nii.gz")]


def voxels(folder, array, **fields):
    image = nibabel.Nifti1Image(array, affine())
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, folder / "scan.nii.gz")
    return [str(folder / "scan.nii.gz")]


def formless(folder, matrix):
    """An sform that nibabel would not write."""
    return patched(folder, (252, "<hh", 0, 2), (280, "<12f", *np.asarray(matrix, float)[:3].ravel()))


def lone_header(folder):
    path = save(folder / "scan.img", ramp(affine(), SHAPE), affine(), kind=nibabel.Nifti1Pair)
    path.unlink()
    return [str(folder / "scan.hdr")]


def renamed(folder, old, new):
    return [str(good(folder, old).rename(folder / new))]


def empty_folder(folder):
    (folder / "scan.nii").mkdir()
    return [str(folder / "scan.nii")]


def reordered(folder):
    """A MINC file that says that its first axis is no time."""
    raw = (PACKAGED / "minc2_4d.mnc").read_bytes()
    return written(folder, "scan.mnc", raw.replace(b"time,zspace,yspace,xspace", b"zspace,yspace,xspace,time"))


def bucket(folder):
    """AFNI's sub-bricks without a time axis, each of which may be anything."""
    header = (PACKAGED / "example4d+orig.HEAD").read_text()
    written(folder, "scan+orig.BRIK.gz", (PACKAGED / "example4d+orig.BRIK.gz").read_bytes())
    without = "\n\n".join(part for part in header.split("\n\n") if "TAXIS" not in part)
    return written(folder, "scan+orig.HEAD", without.encode())


def endless(folder):
    """A table with a field longer than its reader takes."""
    return written(folder, "list.csv", b"path\n" + b"a" * 200_000 + b"\n")


RGB = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
FLAT = affine() @ np.diag([1, 1, 0, 1])
DOUBLED = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
NAN_ROW = affine() + np.array([[np.nan, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])

# What it is called: (maker, a part of the message).
CATALOGUE: dict[str, tuple[Maker, str]] = {
    "a missing file": (lambda f: [str(f / "scan.nii")], "no such file"),
    "an empty folder": (lambda f: [str(f)], "no volume is in it"),
    "a glob that matches nothing": (lambda f: [str(f / "*.nii.gz")], "no volume matches it"),
    "a list that names nothing": (lambda f: written(f, "list.txt", b"# none yet\n\n"), "lists no path"),
    "a list of a missing file": (lambda f: written(f, "list.txt", b"gone.nii\n"), "no such file"),
    "a table without paths": (lambda f: written(f, "list.csv", b"age,sex\n30,F\n"), "one column must be called"),
    "a list that is no text": (lambda f: written(f, "list.txt", b"\xff\xfe\x00\x81"), "no UTF-8"),
    "a table of one endless field": (endless, "field limit"),
    "a list of an endless name": (lambda f: written(f, "list.txt", b"a" * 300 + b".nii\n"), "Check the path"),
    "an endless name": (lambda f: [str(f / ("a" * 300))], "Check the path"),
    "a list of a folder": (lambda f: written(f, "list.txt", b".\n"), "name the volumes in it"),
    "a folder called .nii": (empty_folder, "no volume is in it"),
    "an empty file": (lambda f: written(f, "scan.nii", b""), "empty"),
    "an empty compressed file": (lambda f: written(f, "scan.nii.gz", gzip.compress(b"")), "scan.nii.gz"),
    "text called .nii": (lambda f: written(f, "scan.nii", b"this is no image\n" * 50), "scan.nii"),
    "text called .nii.gz": (lambda f: written(f, "scan.nii.gz", b"this is no image\n"), "not a compressed file"),
    "text, compressed": (lambda f: written(f, "scan.nii.gz", gzip.compress(b"no image " * 99)), "scan.nii.gz"),
    "a picture": (lambda f: written(f, "scan.png", b"\x89PNG\r\n\x1a\n" + bytes(99)), "file type"),
    "a DICOM slice": (lambda f: written(f, "0.dcm", (PACKAGED / "0.dcm").read_bytes()), "folder of the series"),
    "surfaces": (lambda f: written(f, "a.dconn.nii", (PACKAGED / "row_major.dconn.nii").read_bytes()), "not a volume"),
    "a header alone": (lone_header, "scan.img"),
    "not compressed but called so": (lambda f: renamed(f, "scan.nii", "s.nii.gz"), "rename it without .gz"),
    "compressed but not called so": (lambda f: renamed(f, "scan.nii.gz", "s.nii"), "Add .gz"),
    "cut short": (lambda f: cut(f, "scan.nii", 0.6), "declares"),
    "cut within the header": (lambda f: cut(f, "scan.nii", 0.05), "scan.nii"),
    "gzip cut short": (lambda f: cut(f, "scan.nii.gz", 0.7), "truncated"),
    "bzip2 cut short": (lambda f: cut(f, "scan.nii.bz2", 0.7), "truncated"),
    "MGZ cut short": (lambda f: cut(f, "scan.mgz", 0.7, kind=nibabel.MGHImage), "truncated"),
    "MGH cut short": (lambda f: cut(f, "scan.mgh", 0.5, kind=nibabel.MGHImage), "scan.mgh"),
    "a flipped byte": (lambda f: flipped(f, -200), "damaged"),
    "a wrong checksum": (lambda f: flipped(f, -6), "damaged"),
    "a bomb": (lambda f: written(f, "scan.nii.gz", igzip.compress(bytes(300 << 20))), "decompress to more than"),
    "Zstandard": (lambda f: written(f, "scan.nii.zst", b"\x28\xb5\x2f\xfd" + bytes(99)), "Decompress it first"),
    "time after space": (reordered, "at most one of time before them"),
    "a 2D image": (lambda f: voxels(f, np.ones((9, 8), np.float32)), "three axes"),
    "a vector per voxel": (lambda f: voxels(f, np.ones((9, 8, 7, 1, 3), np.float32)), "three axes"),
    "vectors by intent": (lambda f: voxels(f, np.ones((9, 8, 7, 3), "f4"), intent_code=1007), "vectors"),
    "colours by intent": (lambda f: voxels(f, np.ones((9, 8, 7, 3), "f4"), intent_code=2003), "vectors"),
    "colours with opacity by intent": (lambda f: voxels(f, np.ones((9, 8, 7, 4), "f4"), intent_code=2004), "vectors"),
    "AFNI without a time axis": (bucket, "no time axis"),
    "a time point that is not there": (lambda f: [f"{good(f)}[1]"], "and no number 1"),
    "complex numbers": (lambda f: voxels(f, np.ones(SHAPE, np.complex64)), "complex"),
    "colours": (lambda f: voxels(f, RGB), "RGB"),
    "nothing but NaN": (lambda f: voxels(f, np.full(SHAPE, np.nan, "f4")), "no voxel is a finite number"),
    "nothing but infinities": (lambda f: voxels(f, np.full(SHAPE, np.inf, "f4")), "no voxel is a finite number"),
    "nothing but zeros": (lambda f: voxels(f, np.zeros(SHAPE, "i2")), "every voxel is 0"),
    "nothing but sevens": (lambda f: voxels(f, np.full((*SHAPE, 2), 7, "i2")), "every voxel is 7"),
    "an affine with NaN": (lambda f: formless(f, NAN_ROW), "finite"),
    "a flat affine": (lambda f: formless(f, FLAT), "flat"),
    "two axes that are one": (lambda f: formless(f, DOUBLED), "flat"),
    "more time points than are read": (too_many_time_points, "up to 100000 are read"),
    "a size of zero": (lambda f: patched(f, (40, "<4h", 3, 9, 0, 7)), "shape"),
    "a negative size": (lambda f: patched(f, (40, "<4h", 3, 9, -8, 7)), "scan.nii"),
    "eight dimensions": (lambda f: patched(f, (40, "<8h", 7, *[2] * 7)), "three axes"),
    "more than the file holds": (lambda f: patched(f, (40, "<4h", 3, 900, 800, 700)), "declares"),
    "more than gzip holds": (lambda f: patched(f, (40, "<4h", 3, *[30000] * 3), name="s.nii.gz"), "declares"),
    "an unknown dtype": (lambda f: patched(f, (70, "<h", 77)), "scan.nii"),
    "an offset within the header": (lambda f: patched(f, (108, "<f", 100.0)), "scan.nii"),
    "an offset that is no number": (lambda f: patched(f, (108, "<f", np.nan)), "scan.nii"),
    "an infinite intercept": (lambda f: patched(f, (112, "<ff", 1, np.inf)), "scan.nii"),
    "an extension without end": (lambda f: patched(f, (348, "<4B", 1, 0, 0, 0), (108, "<f", 1e6)), "scan.nii"),
    "a scale of zero": (lambda f: [str(good(f)), "--scale", "2,0,2"], "one or three positive numbers"),
    "a scale of next to nothing": (lambda f: [str(good(f)), "--scale", "1e-9"], "larger than the field of view"),
    "a spacing beyond the volume": (lambda f: [str(good(f)), "--spacing", "1,1,500"], "larger than the field of view"),
    "a scale beyond all files": (lambda f: [str(good(f)), "--scale", "1,1e308,1"], "no axis may hold more"),
    "a spacing beyond all files": (lambda f: [str(good(f)), "--spacing", "1e-9,1,1"], "no axis may hold more"),
    "a scale of two numbers": (lambda f: [str(good(f)), "--scale", "2,2"], "one or three positive numbers"),
    "a spacing of words": (lambda f: [str(good(f)), "--spacing", "a,b,c"], "one or three positive numbers"),
    "scale and spacing": (lambda f: [str(good(f)), "--scale", "2,2,2", "--spacing", "1,1,1"], "are mutually exclusive"),
}
