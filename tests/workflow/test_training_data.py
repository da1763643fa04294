"""The files that a configuration names, read and made ready for training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.ndimage import gaussian_filter

from configs.axes import FileShape
from configs.degradation import named_degradation
from configs.errors import ConfigError, InputError, ReadError
from configs.load import load_config
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.volume.grid import Grid
from tasks.volume.nifti import read_volume, write_slabs, write_volume
from tests.networks import small_restorer
from tests.tasks.images import affine, save
from tests.tasks.test_labels import regions
from workflow.evaluate.evaluation import evaluate, read_mask
from workflow.train.data import ranking_volumes, training_inputs, training_volumes, validation_volumes

STOPS = "training.early_stopping={every: 2, patience: 1}"


@pytest.fixture
def scan(tmp_path):
    """Odd sizes, slices along the first file axis, which runs against its world axis."""
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=(21, 35, 38)), 2) > 0
    path = tmp_path / "scan.nii.gz"
    write_volume(path, blobs.astype(np.float32) * 900 + 100.5, Grid(blobs.shape, np.diag([-3.0, 1, 1, 1])))
    return path


@pytest.mark.parametrize("degradation", ["iso2x", "thick4x"])
def test_a_validation_volume_is_its_coarse_version_resampled(scan, degradation):
    config = load_config("iso2x", [f"degradation={degradation}", f"data.validation=[{scan}]", STOPS])
    (volume,) = validation_volumes(config)
    assert volume.fine.shape == {"iso2x": (22, 38, 36), "thick4x": (24, 38, 35)}[degradation]
    np.testing.assert_allclose(volume.coarse, degrade(volume.fine, config.degradation), atol=1e-5)
    np.testing.assert_allclose(volume.resampled, np.clip(resample(volume.coarse, volume.fine.shape), 0, 1.5), atol=1e-5)


def test_validation_is_read_for_early_stopping_alone_and_never_trained_on(scan):
    rules = [f"data.validation=[{scan}]", "data.mixture={volumes: 0, shapes: 1}"]
    assert validation_volumes(load_config("iso2x", rules)) == []
    stopping = load_config("iso2x", [*rules, STOPS])
    assert training_volumes(stopping) == []
    assert [given.role for given in training_inputs(stopping)] == ["validation"]
    with pytest.raises(ConfigError, match="Cannot stop early: no validation volume is named"):
        validation_volumes(load_config("iso2x", [STOPS]))


def test_a_sweep_scores_on_held_out_parts_where_no_volume_is_named(scan):
    rules = [f"data.volumes=[{scan}]", "data.held_out={axis: 1, start: 0.5, stop: 1, gap: 3}"]
    config = load_config("iso2x", rules)
    (part,) = ranking_volumes(config)
    fine = read_volume(scan).voxels[::-1, 18:].transpose(0, 2, 1)  # as the network has it, before padding
    assert part.fine.shape == (22, 38, 18)
    np.testing.assert_allclose(part.fine[1:, :, :17] > 0.5, fine > 500)
    (named,) = ranking_volumes(load_config("iso2x", [*rules, f"data.validation=[{scan}]"]))
    assert named.fine.shape == (22, 38, 36)
    noisy = "degradation={name: noisy, noise: {kind: gaussian, sigma: 0.05}}"
    one, other = (ranking_volumes(load_config("iso2x", [*rules, noisy, f"training.seed={seed}"])) for seed in (0, 1))
    np.testing.assert_array_equal(one[0].coarse, other[0].coarse)


def test_slices_that_are_held_out_stop_training_and_are_not_learnt_from(tmp_path):
    path = tmp_path / "thick.nii.gz"
    voxels = np.random.default_rng(0).random((20, 32, 44), np.float32) + np.arange(20)[:, None, None]
    write_volume(path, voxels, Grid(FileShape(*voxels.shape), np.diag([4.0, 1, 1, 1])))
    held_out = "data.held_out={axis: 0, start: 0.5, stop: 0.75, gap: 1}"
    config = load_config("self4x", [f"data.volumes=[{path}]", held_out, STOPS])
    before, after = training_volumes(config)
    high = np.quantile(voxels, 0.995)
    np.testing.assert_allclose(before.fine[:, 0, 0] * high, voxels[:9].transpose(0, 2, 1)[:, 0, 0], rtol=0.02)
    assert (len(before.fine), len(after.fine)) == (9, 4)
    found = validation_volumes(config)
    assert [volume.fine.shape for volume in found] == [(44, 32, 20), (32, 44, 20)]  # 10 to 14, at a slice's fourth
    for volume in found:
        np.testing.assert_array_equal(volume.coarse, degrade(volume.fine, config.degradation))
        assert volume.fine[..., 2].mean() * high == pytest.approx(voxels[10].mean(), rel=0.02)
        assert volume.fine[..., -3].mean() * high == pytest.approx(voxels[14].mean(), rel=0.02)
    with pytest.raises(ConfigError, match="Cannot stop early: no validation volume is named"):
        validation_volumes(load_config("self4x", [f"data.volumes=[{path}]", STOPS]))
    voxels[:11] = voxels[12:] = 0
    write_volume(path, voxels, Grid(FileShape(*voxels.shape), np.diag([4.0, 1, 1, 1])))
    with pytest.raises(InputError, match=r"slices of thick\.nii\.gz: those that are not held out show no foreground"):
        training_volumes(config)
    ends = load_config("self4x", [f"data.volumes=[{path}]", held_out.replace("0.5", "0.7").replace("1}", "0}"), STOPS])
    with pytest.raises(
        InputError, match=r"validate on thick\.nii\.gz: the slices that are held out show no fore.*held_"
    ):
        validation_volumes(ends)


@pytest.mark.parametrize("rules", [(), ("data.held_out={}", "data.mixture={volumes: 0, shapes: 1}")])
def test_a_sweep_that_has_nothing_to_score_on_is_refused(rules):
    with pytest.raises(ConfigError, match=r"Cannot rank the trainings of a sweep.*--set data\.held_out='\{\}'"):
        ranking_volumes(load_config("iso2x", rules))
    with pytest.raises(ConfigError, match="Cannot rank the trainings of a sweep"):
        ranking_volumes(load_config("self4x", ["data.volumes=[scan.nii]", "data.held_out={}"]))


@pytest.mark.parametrize("key", ["volumes", "validation"])
def test_of_several_time_points_one_is_chosen_by_its_number(tmp_path, key):
    path = tmp_path / "series.nii.gz"
    series = np.random.default_rng(0).random((2, 32, 33, 34), np.float32)
    write_slabs(path, list(series), Grid(FileShape(32, 33, 34), np.eye(4)), n_timepoints=2)
    rules = [STOPS, f"data.{key}=['{path}']", *([f"data.validation=['{path}[0]']"] if key == "volumes" else [])]
    read: Any = {"volumes": training_volumes, "validation": validation_volumes}[key]
    with pytest.raises(ReadError, match=r"holds 2 time points. Choose one by its number: .*\[0\] to .*\[1\]"):
        training_inputs(load_config("iso2x", rules))
    with pytest.raises(ReadError, match="holds 2 time points"):
        read(load_config("iso2x", rules))
    chosen = load_config("iso2x", [*rules, f"data.{key}=['{path}[1]']"])
    assert len(training_inputs(chosen)) == 2
    (volume,) = read(chosen)
    np.testing.assert_array_equal(volume.fine.shape, (34, 34, 32) if key == "validation" else (34, 33, 32))
    np.testing.assert_allclose(read_volume(Path(f"{path}[1]")).voxels, series[1], rtol=1e-6)


@pytest.mark.parametrize("key", ["volumes", "validation"])
def test_a_label_map_is_refused_unless_it_is_said_to_be_an_image(tmp_path, key):
    path = save(tmp_path / "atlas.nii.gz", regions(shape=(32, 33, 34)).astype(float), affine(), dtype="i2")
    rules = [STOPS, f"data.{key}=['{path}']", *([f"data.validation=['{path}']"] if key == "volumes" else [])]
    read: Any = {"volumes": training_volumes, "validation": validation_volumes}[key]
    with pytest.raises(
        InputError, match=r"Cannot use atlas\.nii\.gz: it is a label map \(its 41 values.*data\.kind=image"
    ):
        read(load_config("iso2x", rules))
    (volume,) = read(load_config("iso2x", [*rules, "data.kind=image"]))
    assert max(volume.fine.shape) == 34


@pytest.mark.usefixtures("ray_cluster")
def test_a_label_map_as_reference_is_refused(tmp_path):
    path = save(tmp_path / "sub-01_dseg.nii", regions(shape=(16, 17, 18)).astype(float), affine(), dtype="i2")
    small_restorer().save(tmp_path / "small.keras")
    network, resources = read_network(tmp_path / "small.keras"), Resources(workers=1)
    arguments = ([path], network, named_degradation("iso2x"), resources, None, Console(quiet=True))
    with pytest.raises(InputError, match=r"Cannot use sub-01_dseg\.nii: it is a label map \(its name.*give --as image"):
        evaluate(*arguments)


def test_a_mask_that_is_not_a_number_outside_counts_what_it_marks(tmp_path):
    marked = np.full((16, 17, 18), np.nan, np.float32)
    marked[4:12, 4:12, 4:12] = 1
    marked[0, 0, 0] = 0
    marked[1, 1, 1] = np.inf
    grid = Grid(FileShape(*marked.shape), np.eye(4))
    write_volume(tmp_path / "mask.nii.gz", marked, grid)
    write_volume(tmp_path / "reference.nii.gz", np.ones(marked.shape, np.float32), grid)
    assert read_mask(tmp_path / "mask.nii.gz", [tmp_path / "reference.nii.gz"]).sum() == 512
    write_slabs(tmp_path / "masks.nii.gz", [marked, marked], grid, n_timepoints=2)
    with pytest.raises(ReadError, match="holds 2 time points"):
        read_mask(tmp_path / "masks.nii.gz", [tmp_path / "reference.nii.gz"])


def test_slices_keep_their_axis_and_no_part_is_held_back(scan):
    config = load_config("self4x", [f"data.volumes=[{scan}]"])
    (volume,) = training_volumes(config)
    assert volume.fine.shape == (21, 38, 35)
    assert volume.spacing == pytest.approx((3, 1, 1))
    held = load_config("iso2x", [f"data.volumes=[{scan}]", "data.held_out={axis: 1, start: 0.5, stop: 1, gap: 3}"])
    (part,) = training_volumes(held)
    assert part.fine.shape == (21, 38, 15)
