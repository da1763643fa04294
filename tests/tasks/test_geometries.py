"""A table of geometries: what goes in comes out where it was, finer, and a second reader sees the same."""

import struct
from dataclasses import dataclass, field
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from tasks.artifacts.contracts import volume_contract
from tasks.artifacts.manifest import manifest_entry
from tasks.imaging.resample import resample
from tasks.volume.grid import scaled_grid
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import open_volume, write_slabs
from tests.tasks.images import affine, clamped_ramp, corners, data_folder, ramp, save, world


@dataclass
class Case:
    """One file, and the scale that it is brought to."""

    name: str
    scale: tuple[float, float, float] = (2, 2, 2)
    shape: tuple[int, int, int] = (9, 8, 7)
    matrix: Any = field(default_factory=affine)
    file: str = "in.nii.gz"
    times: int = 1
    itk: bool = True  # it reads no NIfTI-2, refuses shear and guesses otherwise
    saved: dict[str, Any] = field(default_factory=dict)


ORIENTATIONS = ["RAS", "LAS", "LPS", "RPS", "LPI", "RPI", "RAI", "LAI", "ASR", "PIR", "SAL", "IRP", "ARS", "PSL"]
DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", ">i2", ">f4", ">u2", ">f8"]
ANALYZE, SPM = {"kind": nibabel.AnalyzeImage, "dtype": "i2"}, {"kind": nibabel.Spm99AnalyzeImage}
CASES = [
    *(Case(axes, matrix=affine(axes=axes)) for axes in ORIENTATIONS),
    Case("oblique", matrix=affine(angles=(12, -20, 7))),
    Case("oblique PIR", (1, 1, 3), matrix=affine(angles=(-30, 5, 40), axes="PIR")),
    Case("rotated by 45 degrees", matrix=affine(angles=(45, 0, 0))),
    Case("rotated by 180 degrees", matrix=affine(angles=(180, 0, 0))),
    Case("fractions", (1.5, 2.5, 1.1)),
    Case("through-plane", (1, 1, 4)),
    Case("through-plane, oblique, a fraction", (1, 1, 3.7), matrix=affine(angles=(9, 4, -16))),
    Case("coarser", (0.5, 1, 2)),
    Case("thirds", (1 / 3, 3, 2 / 3), shape=(10, 11, 13)),
    Case("one voxel along i", shape=(1, 9, 8)),
    Case("one voxel along j", (1, 1, 2), shape=(9, 1, 8)),
    Case("one voxel along k", (2, 3, 1), shape=(9, 8, 1)),
    Case("a row", (1, 1, 2.5), shape=(1, 1, 12)),
    Case("two by three by five", (5, 3, 2), shape=(2, 3, 5)),
    Case("long and thin", shape=(61, 3, 2)),
    *(Case(dtype, saved={"dtype": dtype}) for dtype in DTYPES),
    Case("slope", saved={"dtype": "i2", "slope": (0.5, -100)}),
    Case("slope, big end first", saved={"dtype": ">u2", "slope": (0.01, 3)}),
    Case("negative slope", saved={"dtype": "i2", "slope": (-0.1, 300)}),
    Case("4D", times=3, saved={"dtype": "i2"}),
    Case("4D, floats, oblique", (1, 1, 2), matrix=affine(angles=(3, 8, 1)), times=2),
    Case("NIfTI-2", itk=False, saved={"kind": nibabel.Nifti2Image, "dtype": "i2"}),
    Case("NIfTI-2, big end first, 4D", times=2, saved={"kind": nibabel.Nifti2Image, "dtype": ">i2"}),
    Case("a pair", file="in.img", saved={"kind": nibabel.Nifti1Pair, "dtype": "i2"}),
    Case("a compressed pair", file="in.img.gz", saved={"kind": nibabel.Nifti1Pair}),
    Case("a pair of NIfTI-2", file="in.hdr", itk=False, saved={"kind": nibabel.Nifti2Pair}),
    Case("Analyze: a guess", matrix=affine(axes="LAS", origin=(4, -5.25, -9)), file="in.img", saved=ANALYZE),
    Case("Analyze with the matrix of SPM", matrix=affine(angles=(8, -4, 20)), file="in.img", saved=SPM),
    Case("not compressed", file="in.nii"),
    Case("bzip2", file="in.nii.bz2"),
    Case("MGZ", matrix=affine(angles=(10, 20, 30), axes="LIA"), file="in.mgz", saved={"kind": nibabel.MGHImage}),
    Case("MGH of bytes", file="in.mgh", saved={"kind": nibabel.MGHImage, "dtype": "u1"}),
    Case("MGZ in 4D", file="in.mgz", times=2, saved={"kind": nibabel.MGHImage}),
    Case("scanner and atlas codes", saved={"codes": (1, 4)}),
    Case("qform alone", matrix=affine(angles=(5, 6, 7)), saved={"codes": (1, 0)}),
    Case("sform alone", saved={"codes": (0, 2)}),
    Case(
        "no codes: nibabel's guess",
        matrix=affine(axes="LAS", origin=(4, -5.25, -9)),
        itk=False,
        saved={"codes": (0, 0)},
    ),
    Case("micrometres", matrix=affine(spacing=(100.0, 120.0, 300.0)), saved={"unit": "micron"}),
    Case("metres", matrix=affine(spacing=(0.001, 0.001, 0.003), origin=(0.02, 0.01, 0)), saved={"unit": "meter"}),
    Case("far away", matrix=affine(origin=(2000.0, -1500.0, 900.0))),
    Case("very fine", matrix=affine(spacing=(0.05, 0.05, 0.2))),
    Case("very coarse", (4, 4, 1), matrix=affine(spacing=(10.0, 9.0, 8.0))),
    Case("shear", matrix=affine(shear=0.3), itk=False, saved={"codes": (2, 2)}),
]
MM = {"micron": 0.001, "meter": 1000.0}


def enlarge(source, output, scale, order="linear"):
    """Resample a file onto a finer grid, slab by slab, every time point."""
    scan = open_volume(source)
    grid = scaled_grid(scan.grid, scale)
    slabs = (
        slab
        for time in range(scan.header.n_timepoints)
        for slab in np.array_split(resample(scan.read(time).voxels, grid.shape, order), 3, axis=2)
        if slab.size
    )
    write_slabs(output, slabs, grid, scan, n_timepoints=scan.header.n_timepoints)
    return scan, grid


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # nibabel's, of .mgh files
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_finer_volume_lies_where_the_coarse_one_lay(case, tmp_path):
    expected = ramp(case.matrix, case.shape)
    stored = np.stack([expected] * case.times, -1) if case.times > 1 else expected
    save(tmp_path / case.file, stored / (2 if case.saved.get("dtype") == "i1" else 1), case.matrix, **case.saved)
    before = nibabel.load(tmp_path / case.file)
    _, grid = enlarge(tmp_path / case.file, tmp_path / "out.nii.gz", case.scale)

    after = nibabel.load(tmp_path / "out.nii.gz")
    unit = np.diag([*[MM.get(case.saved.get("unit", "mm"), 1.0)] * 3, 1.0])
    given = unit @ before.affine
    finer = [int(n * s + 0.5) if n > 1 else 1 for n, s in zip(case.shape, case.scale, strict=True)]
    assert after.shape[:3] == tuple(finer)
    np.testing.assert_allclose(corners(after.affine, after.shape[:3]), corners(given, case.shape), atol=1e-4, rtol=3e-7)
    np.testing.assert_allclose(after.header.get_zooms()[:3], grid.spacing, rtol=1e-5)
    values = np.asarray(after.dataobj, dtype=float) * (2 if case.saved.get("dtype") == "i1" else 1)
    step = case.saved.get("slope", (1,))[0] if np.dtype(case.saved.get("dtype", "f4")).kind in "iu" else 0
    want = clamped_ramp(given, case.shape, after.affine, after.shape[:3])
    for time in range(case.times):
        now = values[..., time] if case.times > 1 else values
        np.testing.assert_allclose(now, want, atol=2.1 * abs(step) + 5e-3)

    if case.saved.get("kind") in (nibabel.MGHImage, nibabel.AnalyzeImage, nibabel.Spm99AnalyzeImage):
        assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == (1, 1)
    else:
        assert after.header["qform_code"] == (0 if case.name == "shear" else before.header["qform_code"])
        assert after.header["sform_code"] == before.header["sform_code"]
    if np.dtype(case.saved.get("dtype", "f4")).kind in "iu":
        assert after.get_data_dtype().newbyteorder("=") == before.get_data_dtype().newbyteorder("=")
    else:
        assert after.get_data_dtype() == np.float32
    if case.itk and case.times == 1:
        assert_second_reader_agrees(tmp_path / "out.nii.gz", grid)


def assert_second_reader_agrees(path, grid):
    """SimpleITK counts in LPS: its first two world axes run against ours."""
    image = SimpleITK.ReadImage(str(path))
    to_lps = np.diag([-1.0, -1.0, 1.0])
    assert image.GetSize() == grid.shape
    np.testing.assert_allclose(image.GetSpacing(), grid.spacing, rtol=1e-5)
    np.testing.assert_allclose(image.GetOrigin(), to_lps @ grid.affine[:3, 3], atol=1e-3, rtol=1e-5)
    direction = to_lps @ grid.affine[:3, :3] / grid.spacing
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), direction, atol=1e-5)


def test_the_table_is_as_long_as_it_should_be():
    assert len(CASES) >= 40


def test_the_rest_of_the_header_is_kept(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((5, 6, 7, 3), np.int16), affine())
    image.header.set_xyzt_units("mm", "msec")
    image.header.set_zooms((1, 1.5, 3, 2540))
    image.header["descrip"] = b"a scan"
    image.header["cal_max"] = 900
    image.header.set_dim_info(0, 1, 2)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept as it is"))
    nibabel.save(image, tmp_path / "in.nii.gz")
    enlarge(tmp_path / "in.nii.gz", tmp_path / "out.nii.gz", (2, 2, 1))
    after = nibabel.load(tmp_path / "out.nii.gz").header
    assert after.get_xyzt_units() == ("mm", "msec")
    assert after.get_zooms()[3] == 2540
    assert after["descrip"] == b"a scan"
    assert after["cal_max"] == 900
    assert after.get_dim_info() == (0, 1, 2)
    assert [e.get_content().rstrip(b"\0") for e in after.extensions] == [b"kept as it is"]


def test_scanner_and_atlas_forms_each_keep_their_own_world(tmp_path):
    scanner, atlas = affine(angles=(5, 0, 0)), affine(angles=(0, 20, 0), origin=(1, 2, 3))
    image = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.float32), None)
    image.set_sform(atlas, 4)
    image.set_qform(scanner, 1)
    nibabel.save(image, tmp_path / "in.nii.gz")
    enlarge(tmp_path / "in.nii.gz", tmp_path / "out.nii.gz", (2, 1, 3))
    after = nibabel.load(tmp_path / "out.nii.gz")
    for form, matrix in ((after.get_sform(), atlas), (after.get_qform(), scanner)):
        np.testing.assert_allclose(corners(form, after.shape), corners(matrix, (5, 6, 7)), atol=1e-4)


def test_a_qform_that_is_not_valid_is_left_out_and_told(tmp_path):
    raw = bytearray(save(tmp_path / "in.nii", ramp(affine(), (5, 6, 7)), affine(), codes=(1, 4)).read_bytes())
    struct.pack_into("<f", raw, 268, np.nan)  # qoffset_x
    (tmp_path / "in.nii").write_bytes(raw)
    scan, grid = enlarge(tmp_path / "in.nii", tmp_path / "out.nii", (2, 1, 3))
    assert "the qform is not valid and is left out" in scan.header.warnings[0]
    after = nibabel.load(tmp_path / "out.nii")
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == (0, 4)
    np.testing.assert_allclose(after.affine, grid.affine, atol=1e-5)


def test_a_sheared_sform_is_kept_and_no_qform_contradicts_it(tmp_path):
    folder = data_folder()
    source = folder / "shear.nii.gz" if folder else tmp_path / "shear.nii.gz"
    if not folder:
        save(source, ramp(affine(), (20, 21, 9)), affine(shear=0.3), codes=(2, 2))
    before = nibabel.load(source)
    enlarge(source, tmp_path / "out.nii.gz", (1, 1, 2))
    after = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(corners(after.affine, after.shape), corners(before.affine, before.shape), atol=1e-3)
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == (0, int(before.header["sform_code"]))
    for path in (source, tmp_path / "out.nii.gz"):
        assert any(
            "no qform can hold that, only the sform does" in warning for warning in inspect_volume(path).warnings
        )


@dataclass
class Forms:
    """A qform and an sform of one file, and what an output has of them: the qform's corners and its code."""

    name: str
    qform: Any
    sform: Any
    warning: str
    kept: bool = False
    code: int = 4
    kind: Any = nibabel.Nifti1Image


FORMS = [
    Forms("scan and template", affine((0.5, 0.5, 1.5)), affine((1, 1, 1)), "0.5x0.5x1.5 mm and the sform of 1x1x1 mm"),
    Forms("rounded", affine((0.9375, 0.9375, 1.2)), affine((0.938, 0.938, 1.2)), "0.9375x0.9375x1.2 mm and the sform"),
    Forms("hardly different", affine((1, 1, 1.0002)), affine((1, 1, 1)), "1x1x1.0002 mm and the sform of 1x1x1 mm"),
    Forms("NIfTI-2", affine((1, 2, 3)), affine((3, 2, 1), (5, 0, 9)), "the sform is used", kind=nibabel.Nifti2Image),
    Forms("as good as equal", affine((1, 1, 1.00005)), affine((1, 1, 1)), "", kept=True, code=1),
    Forms("another world", affine((1, 1, 2), (9, 0, 4)), affine((1, 1, 2), axes="LPS"), "differ by", kept=True, code=1),
    Forms("sheared", affine((1, 1, 2)), affine((1, 1, 2), shear=0.01), "sheared by 0.57 degrees", code=0),
]


@pytest.mark.parametrize("forms", FORMS, ids=lambda forms: forms.name)
def test_the_forms_of_an_output_never_contradict_each_other(forms, tmp_path):
    """Known before any work, by the same rule, and kept by the contract of the output."""
    image = forms.kind(np.random.default_rng(0).random((20, 21, 9), np.float32), None)
    image.set_sform(forms.sform, 4)
    image.set_qform(forms.qform, 1)
    nibabel.save(image, tmp_path / "in.nii.gz")
    warnings = inspect_volume(tmp_path / "in.nii.gz").warnings
    assert any(forms.warning in warning for warning in warnings) if forms.warning else not warnings

    scan, grid = enlarge(tmp_path / "in.nii.gz", tmp_path / "out.nii.gz", (2, 1, 3))
    after = nibabel.load(tmp_path / "out.nii.gz")
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == (forms.code, 4)
    np.testing.assert_allclose(corners(after.affine, after.shape), corners(forms.sform, (20, 21, 9)), atol=1e-4)
    np.testing.assert_allclose(after.header.get_zooms(), grid.spacing, rtol=1e-6)
    if forms.code:
        expected = forms.qform if forms.kept else forms.sform
        np.testing.assert_allclose(
            corners(after.header.get_qform(), after.shape), corners(expected, (20, 21, 9)), atol=1e-3
        )
    contract = volume_contract(grid, scan.header.dtype.name)
    assert manifest_entry(tmp_path / "out.nii.gz", contract).contract == contract
    assert not any("has voxels of" in warning for warning in inspect_volume(tmp_path / "out.nii.gz").warnings)


def test_an_image_too_long_for_nifti_1_is_written_as_nifti_2(tmp_path):
    save(tmp_path / "in.nii", ramp(affine(), (17000, 2, 2)), affine(), dtype="i2", descrip=b"long")
    enlarge(tmp_path / "in.nii", tmp_path / "out.nii", (2, 1, 1))
    after = nibabel.load(tmp_path / "out.nii")
    assert isinstance(after, nibabel.Nifti2Image)
    assert after.shape == (34000, 2, 2)
    assert after.header["descrip"] == b"long"


def landmark(path):
    """World place of the centre of mass of what is brighter than most, by nibabel alone."""
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj, dtype=float)
    voxels = np.where(voxels > np.percentile(voxels, 70), voxels, 0)
    return world(image.affine, np.array([np.average(i, weights=voxels) for i in np.indices(voxels.shape)]))


@pytest.mark.parametrize("name", ["CT_pitch", "chris_PD", "pcasl"])
def test_real_scans_come_back_in_their_own_frame(name, tmp_path):
    folder = data_folder()
    source = folder / f"{name}.nii.gz" if folder else tmp_path / f"{name}.nii.gz"
    if not folder:
        shape = (12, 14, 6, 10) if name == "pcasl" else (30, 31, 12)
        voxels = np.random.default_rng(0).gamma(2, 60, shape)
        save(source, voxels, affine(angles=(16, 0, 2)), dtype="f4" if name == "pcasl" else "u1", codes=(2, 2))
    before = nibabel.load(source)
    enlarge(source, tmp_path / "out.nii.gz", (1, 1, 2), "cubic")
    after = nibabel.load(tmp_path / "out.nii.gz")
    assert after.shape == (*before.shape[:2], before.shape[2] * 2, *before.shape[3:])
    np.testing.assert_allclose(
        corners(after.affine, after.shape[:3]), corners(before.affine, before.shape[:3]), atol=1e-4
    )
    if len(before.shape) == 3:
        np.testing.assert_allclose(landmark(tmp_path / "out.nii.gz"), landmark(source), atol=0.5)
    else:
        assert after.header.get_zooms()[3] == before.header.get_zooms()[3]
