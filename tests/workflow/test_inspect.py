"""`voxlift inspect`: what passes, what is refused, and how."""

import json

import nibabel
import numpy as np
import pytest

from tests.tasks.damaged import CATALOGUE, good
from tests.tasks.images import affine, packaged_volumes, ramp, save


@pytest.fixture(autouse=True)
def messages_alone(monkeypatch):
    """Standard error holds messages alone, however long the machine takes to read."""
    monkeypatch.setattr("workflow.terminal.progress.LINE_SECONDS", 3600)


@pytest.mark.parametrize("name", CATALOGUE)
def test_what_cannot_be_used_is_refused_in_one_message(name, voxlift, tmp_path):
    make, part = CATALOGUE[name]
    arguments = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = voxlift("inspect", *arguments)
    assert status == 2
    assert err.startswith("voxlift: Cannot ")
    assert err.count("\n") == 1
    assert err.endswith(".\n")
    assert part in err
    assert str(tmp_path) not in err
    assert not out.strip()
    assert sorted(tmp_path.rglob("*")) == before


def test_the_catalogue_is_as_long_as_it_should_be():
    assert len(CATALOGUE) >= 25


def test_a_good_volume_next_to_a_bad_one_is_shown_all_the_same(voxlift, tmp_path):
    good(tmp_path, "a.nii")
    status, out, err = voxlift("inspect", "--json", str(tmp_path / "a.nii"), str(tmp_path / "b.nii"))
    assert status == 2
    first, second = json.loads(out)["volumes"]
    assert (first["status"], first["shape"], first["axes"]) == ("passed", [9, 8, 7], "RAS")
    assert (second["status"], second["error"]) == ("refused", err.removeprefix("voxlift: ").strip())


def test_the_table_shows_the_geometry_and_the_target(voxlift, tmp_path):
    save(tmp_path / "a.nii", ramp(affine(), (9, 8, 7)), affine(angles=(10, 0, 0)), dtype="i2", codes=(1, 4))
    status, out, err = voxlift("inspect", str(tmp_path), "--scale", "2,2,3")
    assert (status, err) == (0, "")
    for part in ("a.nii", "9x8x7 at 1x1.5x3 mm", "RAS, 10.0° oblique, slices along k", "qform code 1, sform code 4"):
        assert part in out
    assert "target 18x16x21 at 0.5x0.75x1 mm, 0.0 MiB" in out
    assert "NIfTI-1, int16" in out


@pytest.mark.parametrize(
    ("saved", "part"),
    [
        ({"codes": (0, 0)}, "a guess"),
        ({"unit": "micron"}, "microns in the file"),
        ({"pixdim": [1, 1, 1.5, 2, 0, 0, 0, 0], "codes": (0, 1)}, "the affine is used"),
        ({"xyzt_units": 7}, "names no unit"),
        ({"kind": nibabel.AnalyzeImage}, "which side is left is a guess"),
    ],
)
def test_what_is_odd_is_remarked(saved, part, voxlift, tmp_path):
    name = "a.img" if "kind" in saved else "a.nii"
    status, out, _ = voxlift("inspect", "--json", str(good(tmp_path, name, **saved)))
    assert status == 0
    assert any(part in warning for warning in json.loads(out)["volumes"][0]["warnings"])


def test_odd_voxels_are_counted_and_left_out_of_the_range(voxlift, tmp_path):
    voxels = ramp(affine(), (9, 8, 7))
    voxels[:2, 0, 0] = np.nan, np.inf
    save(tmp_path / "a.nii", voxels, affine())
    record = json.loads(voxlift("inspect", "--json", str(tmp_path / "a.nii"))[1])["volumes"][0]
    assert record["not_finite"] == 2
    assert 10 <= record["lowest"] < record["highest"] <= 241
    assert "2 voxels are NaN or infinite" in record["warnings"][0]


@pytest.mark.parametrize(
    ("spacing", "lowest", "acquisition"),
    [
        ((1, 1, 1), 0, "k-space truncation (the model's default: nothing is known of the scan)"),
        ((1, 1, 1), -1000, "box (as for computed tomography, by its values)"),
        ((1, 1, 5), 0, "box (the model's default: nothing is known of the scan)"),
    ],
)
def test_the_acquisition_that_is_assumed_is_shown(voxlift, tmp_path, spacing, lowest, acquisition):
    voxels = lowest + np.random.default_rng(0).gamma(2.0, 300.0, size=(9, 8, 7)).astype(np.float32)
    save(tmp_path / "a.nii", voxels, np.diag([*spacing, 1.0]))
    (record,) = json.loads(voxlift("inspect", "--json", str(tmp_path / "a.nii"))[1])["volumes"]
    assert record["acquisition"] == acquisition
    _, shown, _ = voxlift("inspect", str(tmp_path / "a.nii"))
    assert f"assumed: {acquisition.split()[0]}" in shown


def test_the_packages_bring_volumes():
    names = {path.name for path in packaged_volumes()}
    assert {"example4d.nii.gz", "anatomical.nii", "example_nifti2.nii.gz", "test.mgz"} <= names
    assert any(name.startswith("mni_icbm152_t1") for name in names)


def test_every_volume_in_the_packages_passes(voxlift):
    status, out, err = voxlift("inspect", "--json", *map(str, packaged_volumes()))
    assert (status, err) == (0, "")
    assert {volume["status"] for volume in json.loads(out)["volumes"]} == {"passed"}
