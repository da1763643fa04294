"""OME-Zarr images, compared with what nibabel reads of the same volume and with zarr itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.axes import FileShape
from configs.errors import ContractError, InputError, ReadError
from tasks.artifacts.contracts import volume_contract
from tasks.artifacts.manifest import manifest_entry
from tasks.files.atomic import sweep
from tasks.files.selection import expand_inputs
from tasks.files.trees import file_digest
from tasks.volume.grid import Grid
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import open_volume, read_volume, slab_writer, write_slabs, write_volume
from tests.tasks.images import affine

ROOT = Path(__file__).parents[2]
SHAPE = (11, 9, 70)  # more planes than a chunk has
VOXELS = np.random.default_rng(0).integers(-900, 2000, SHAPE).astype(np.int16)
OBLIQUE = affine((0.9, 1.0, 3.0), (11.0, -7.0, 15.0), "LPS")


def written(path, matrix=OBLIQUE, voxels=VOXELS, dtype="int16"):
    write_slabs(path, [voxels.astype(np.float32)], Grid(FileShape(*voxels.shape), matrix), dtype=dtype)
    return path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def made(path, ome=None, shape=(6, 5, 4), **image):
    """An image as another program writes it, with changes of its metadata."""
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    steps = [{"type": "scale", "scale": [3.0, 2.0, 0.5]}, {"type": "translation", "translation": [7.0, -5.0, 1.0]}]
    image = {"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": steps}]} | image
    group = zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": [image]} | (ome or {})})
    array = group.create_array("s0", shape=shape, chunks=(1,) * (len(shape) - 3) + (2, 3, 4), dtype="uint8")
    array[:] = np.arange(1, 1 + np.prod(shape)).reshape(shape)
    return path


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR", "PIL"])
@pytest.mark.parametrize("angles", [(0, 0, 0), (11, -7, 15)])
def test_affine_and_voxels_are_those_of_nifti(tmp_path, axes, angles):
    matrix = affine((0.9, 1.0, 3.0), angles, axes)
    theirs = nibabel.load(written(tmp_path / "scan.nii", matrix))
    found = inspect_volume(written(tmp_path / "scan.ome.zarr", matrix))
    np.testing.assert_allclose(found.scan.grid.affine, theirs.affine, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(found.scan.read().voxels, np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(next(found.volumes()).voxels, VOXELS)
    assert found.scan.header.dtype == np.int16
    assert found.warnings == inspect_volume(tmp_path / "scan.nii").warnings
    assert found.digests == (file_digest(tmp_path / "scan.ome.zarr"),)


def test_what_is_written_is_what_the_specification_asks_for(tmp_path):
    matrix = affine((0.5, 2.0, 3.0), (0, 0, 0), "RAS", origin=(1.0, -5.0, 7.0))
    group = zarr.open_group(written(tmp_path / "scan.ome.zarr", matrix), mode="r", zarr_format=3)
    (image,) = group.attrs["ome"]["multiscales"]
    array = group[image["datasets"][0]["path"]]
    assert group.attrs["ome"]["version"] == "0.5"
    assert [axis["name"] for axis in image["axes"]] == list(array.metadata.dimension_names) == ["z", "y", "x"]
    assert {(axis["type"], axis["unit"]) for axis in image["axes"]} == {("space", "millimeter")}
    scale, translation = image["datasets"][0]["coordinateTransformations"]
    np.testing.assert_allclose(scale["scale"], [3.0, 2.0, 0.5])
    np.testing.assert_allclose(translation["translation"], [7.0, -5.0, 1.0], atol=1e-9)
    np.testing.assert_array_equal(array[:].T, VOXELS)
    assert array.nchunks_initialized == array.nchunks > 1


def test_scale_and_translation_keep_the_centre_of_an_oblique_volume(tmp_path):
    path = written(tmp_path / "scan.ome.zarr")
    group = zarr.open_group(path, mode="r+")
    steps = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    middle = (np.array(SHAPE) - 1) / 2
    centre = np.array(steps[1]["translation"]) + np.array(steps[0]["scale"]) * middle[::-1]
    np.testing.assert_allclose(centre[::-1], Grid(FileShape(*SHAPE), OBLIQUE).world(middle[None])[0])
    del group.attrs["voxlift"]
    assert any("which side is left is a guess" in warning for warning in open_volume(path).header.warnings)


def test_an_image_of_another_program_lies_where_its_metadata_say(tmp_path):
    scan = open_volume(made(tmp_path / "scan.zarr"))
    np.testing.assert_array_equal(scan.grid.affine, [[0.5, 0, 0, 1], [0, 2, 0, -5], [0, 0, 3, 7], [0, 0, 0, 1]])
    assert scan.grid.shape == (4, 5, 6)
    np.testing.assert_array_equal(scan.read().voxels.ravel(order="F"), np.arange(1, 121))


def test_units_orientations_and_single_channels_are_understood(tmp_path):
    axes: list[dict[str, object]] = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    for name, way in (("z", "inferior-to-superior"), ("y", "anterior-to-posterior"), ("x", "right-to-left")):
        orientation = {"type": "anatomical", "value": way}
        axes.append({"name": name, "type": "space", "unit": "micrometer", "orientation": orientation})
    steps = [{"type": "scale", "scale": [1, 1, 300, 200, 50]}, {"type": "translation", "translation": [0, 0, 7, -5, 1]}]
    levels = [{"path": path, "coordinateTransformations": steps} for path in ("s0", "s1")]
    scan = open_volume(made(tmp_path / "scan.zarr", shape=(1, 1, 6, 5, 4), axes=axes, datasets=levels))
    np.testing.assert_allclose(np.diag(scan.grid.affine), [-0.05, -0.2, 0.3, 1])
    np.testing.assert_allclose(scan.grid.affine[:3, 3], [-0.001, 0.005, 0.007])
    assert scan.header.warnings == ("it holds 2 levels; the finest is used",)
    np.testing.assert_array_equal(scan.read().voxels.ravel(order="F"), np.arange(1, 121))


SPACE = [{"name": name, "type": "space"} for name in "zyx"]
REFUSED = {
    "no group": (lambda path: path.mkdir(), "it is no Zarr group: it holds no zarr.json"),
    "version 2": (lambda path: zarr.create_group(path, zarr_format=2), "it is Zarr version 2"),
    "array": (lambda path: zarr.create_array(path, shape=(2, 2, 2), dtype="u1"), "it is a bare array"),
    "no metadata": (zarr.create_group, "a Zarr group without OME metadata"),
    "0.4": (lambda path: made(path, {"version": "0.4"}), "it is OME-Zarr 0.4, and 0.5 is read"),
    "plate": (lambda path: made(path, {"multiscales": []}), "it holds 0 images, and one is needed"),
    "labels": (lambda path: made(path, {"image-label": {}}), "it is a label image of OME-Zarr"),
    "axes": (lambda path: made(path, axes=SPACE[:2]), r"its 3 axes are z \(space\), y \(space\); three of space"),
    "channels": (
        lambda path: made(path, shape=(3, 6, 5, 4), axes=[{"name": "c", "type": "channel"}, *SPACE]),
        "one volume is needed, and it holds 3 along c",
    ),
    "unit": (lambda path: made(path, axes=[*SPACE[:2], SPACE[2] | {"unit": "inch"}]), "unit of its axis x is inch"),
    "rotation": (
        lambda path: made(path, datasets=[{"path": "s0", "coordinateTransformations": [{"type": "rotation"}]}]),
        "its coordinate transformation rotation is no scale or translation",
    ),
    "flat": (
        lambda path: made(path, coordinateTransformations=[{"type": "scale", "scale": [0.0, 1.0, 1.0]}]),
        "the affine is flat",
    ),
    "no array": (
        lambda path: made(path, datasets=[{"path": "s1", "coordinateTransformations": []}]),
        "its array s1 is not there",
    ),
    "metadata": (lambda path: made(path, axes="zyx"), "its OME metadata are not valid at multiscales.0.axes"),
    "json": (lambda path: (made(path) / "zarr.json").write_text("{"), "Cannot read scan.zarr"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_image_of_one_volume_is_refused_with_the_reason(tmp_path, case):
    make, reason = REFUSED[case]
    make(tmp_path / "scan.zarr")
    with pytest.raises(ReadError, match=reason) as refused:
        inspect_volume(tmp_path / "scan.zarr")
    assert refused.value.remedy


def test_a_damaged_chunk_is_refused_and_a_lost_one_is_named(tmp_path):
    path = written(tmp_path / "scan.zarr")
    chunk = path / "0" / "c" / "1" / "0" / "0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[: len(content) // 2])
    with pytest.raises(ReadError, match=r"Cannot read scan\.zarr"):
        inspect_volume(path)
    chunk.unlink()
    assert "1 of 3 chunks are not stored and count as 0" in inspect_volume(path).warnings


def test_an_affine_that_does_not_belong_to_the_transformations_is_refused(tmp_path):
    path = written(tmp_path / "scan.zarr")
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["voxlift"]["affine"][0][3] += 40
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(ReadError, match="Remove that attribute if the image was cropped"):
        open_volume(path)


def test_without_zarr_the_message_names_the_extra(tmp_path, monkeypatch):
    path = written(tmp_path / "scan.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(InputError, match=r"Install it with: pip install 'voxlift\[zarr\]'"):
        open_volume(path)
    with pytest.raises(InputError, match=r"Cannot write out\.zarr"):
        written(tmp_path / "out.zarr")


def test_a_slope_is_refused_before_anything_is_written(tmp_path):
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    with pytest.raises(InputError, match=r"OME-Zarr holds no slope, and the input has one of 0\.5"):
        write_volume(tmp_path / "out.zarr", volume.voxels, volume.grid, volume)
    assert not (tmp_path / "out.zarr").exists()
    write_volume(tmp_path / "out.zarr", volume.voxels, volume.grid, volume, dtype="float32")
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").voxels, volume.voxels)


def test_a_folder_that_is_no_image_is_never_replaced(tmp_path):
    (tmp_path / "scan.zarr").mkdir()
    (tmp_path / "scan.zarr" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="there is a folder of that name that holds no Zarr group"):
        written(tmp_path / "scan.zarr")
    assert names_in(tmp_path / "scan.zarr") == ["thesis.tex"]
    shutil.rmtree(tmp_path / "scan.zarr")
    first = file_digest(written(tmp_path / "scan.zarr"))
    assert file_digest(written(tmp_path / "scan.zarr")) == first
    assert file_digest(written(tmp_path / "other" / "copy.zarr")) == first
    shutil.rmtree(tmp_path / "other")
    assert names_in(tmp_path) == ["scan.zarr"]


def test_folders_and_globs_find_images(tmp_path):
    paths = [written(tmp_path / name) for name in ("a.nii", "b.ome.zarr", "c.zarr")]
    assert expand_inputs([tmp_path]) == expand_inputs([f"{tmp_path}/*"]) == paths
    assert expand_inputs([paths[1]]) == paths[1:2]


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 40)] * 3), data=st.data(), seed=st.integers(0, 9))
def test_any_window_of_planes_is_that_of_the_volume(tmp_path_factory, shape, data, seed):
    path = tmp_path_factory.mktemp("window") / "scan.zarr"
    voxels = np.random.default_rng(seed).integers(0, 255, shape)
    scan = open_volume(written(path, voxels=voxels, dtype="uint8"))
    for _ in range(5):
        start = data.draw(st.integers(0, shape[2] - 1))
        stop = data.draw(st.integers(start + 1, shape[2]))
        np.testing.assert_array_equal(scan.slab(start, stop), voxels[:, :, start:stop])


def test_a_killed_writer_leaves_nothing_that_is_taken_for_an_output(tmp_path):
    code = (
        "import os, sys, signal, numpy as np\n"
        "from pathlib import Path\n"
        "from configs.axes import FileShape\n"
        "from tasks.volume.grid import Grid\n"
        "from tasks.volume.nifti import slab_writer\n"
        "with slab_writer(Path(sys.argv[1]), Grid(FileShape(8, 8, 64), np.eye(4)), dtype='uint8') as writer:\n"
        "    writer.write(np.ones((8, 8, 40), np.float32))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "scan.zarr"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    (partial,) = tmp_path.iterdir()
    assert len(list((partial / "0" / "c").iterdir())) == 1
    with pytest.raises(InputError, match="no volume is in it"):
        expand_inputs([tmp_path])
    sweep(path)
    assert not partial.exists()


def test_a_manifest_knows_an_image_whose_bytes_were_changed(tmp_path):
    grid = Grid(FileShape(*SHAPE), OBLIQUE)
    path = written(tmp_path / "scan.zarr")
    entry = manifest_entry(path, volume_contract(grid, "int16"))
    assert entry.problems(path) == []
    (path / "0" / "c" / "1" / "0" / "0").unlink()
    assert "it is not the file that was recorded" in entry.problems(path)[-1]
    shutil.rmtree(path)
    assert entry.problems(path) == ["it does not exist"]
    with pytest.raises(ContractError, match="its type must be uint8, received int16"):
        manifest_entry(written(path), volume_contract(grid, "uint8"))


def test_an_error_while_writing_keeps_what_was_there(tmp_path):
    before = file_digest(written(tmp_path / "scan.zarr"))
    with (
        pytest.raises(ValueError, match="planes do not fill"),
        slab_writer(tmp_path / "scan.zarr", Grid(FileShape(8, 8, 64), np.eye(4))) as writer,
    ):
        writer.write(np.ones((8, 8, 40), np.float32))
    assert file_digest(tmp_path / "scan.zarr") == before
    assert names_in(tmp_path) == ["scan.zarr"]
