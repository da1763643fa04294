import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.axes import NetworkShape
from configs.degradation import named_degradation
from configs.errors import ConfigError, InputError
from configs.load import load_config
from tasks.artifacts.model_card import make_card
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.training.blocks import (
    BlockSource,
    PatchSource,
    TrainingVolume,
    augment,
    block_number,
    block_shape,
    crop,
    drawn_recipe,
    sheared_slice,
)

PLAIN = ("augmentation.gain=0", "training.patch=[8, 16, 16]")


def run(*overrides, degradation="iso2x"):
    return load_config("demo", [f"degradation={degradation}", *PLAIN, *overrides])


def numbered(shape):
    """A volume in which each voxel knows its place."""
    return TrainingVolume.of((1 + np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32) / 2)


def staircase(axis, shape=(64, 72, 80)):
    """A volume that varies along one axis."""
    steps = np.linspace(0.1, 1, shape[axis], dtype=np.float32)
    return TrainingVolume.of(np.broadcast_to(np.expand_dims(steps, [a for a in range(3) if a != axis]), shape))


@pytest.mark.parametrize("degradation", ["iso2x", "thick4x"])
def test_the_input_of_a_block_is_its_target_degraded_and_resampled(degradation):
    config = run(degradation=degradation)
    shape = block_shape(config.training.patch, [config.degradation])
    source = BlockSource(
        [numbered((64, 72, 80))], config.data.mixture, [config.degradation], config.augmentation, shape, 3
    )
    block = source.draw(4)
    again = resample(degrade(block.fine, config.degradation), shape)
    np.testing.assert_allclose(block.resampled, np.clip(again, 0, 1.5), atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(index=st.integers(0, 1000))
def test_patches_begin_where_coarse_voxels_begin(index):
    config = run(degradation="thick4x")
    volume = numbered((64, 72, 80))
    target = PatchSource([volume], config).draw(index).fine
    shape = block_shape(config.training.patch, [config.degradation])
    source = BlockSource([volume], config.data.mixture, [config.degradation], config.augmentation, shape, 0)
    block = source.draw(block_number(index)).fine
    depths = np.argwhere(np.isin(block, target))[:, 0]
    assert depths.min() % 4 == 0
    assert depths.max() - depths.min() == 7


@settings(deadline=None, max_examples=10)
@given(index=st.integers(0, 1000))
def test_the_slice_axis_stays_where_it_must(index):
    target = PatchSource([staircase(0)], run(degradation="thick4x")).draw(index).fine
    assert (target == target[:, :1, :1]).all()
    assert len(np.unique(target)) == 8


def test_any_axis_may_come_first_when_all_are_alike():
    source = PatchSource([staircase(0)], run())
    targets = [source.draw(index)[1] for index in range(64)]
    varying = {next(axis for axis in range(3) if np.ptp(target, axis=axis).any()) for target in targets}
    assert varying == {0, 1, 2}


def test_a_patch_depends_on_seed_and_index_alone():
    volumes = [numbered((40, 48, 40)), numbered((16, 16, 16))]
    forwards, backwards = (PatchSource(volumes, run("training.seed=5")) for _ in range(2))
    first = [forwards.draw(index)[1] for index in (7, 8, 200)]
    again = [backwards.draw(index)[1] for index in (200, 8, 7)]
    for one, other in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], PatchSource(volumes, run("training.seed=6")).draw(7)[1])


def test_a_volume_smaller_than_a_block_is_continued_by_its_mirror_image():
    volume = numbered((3, 40, 5))
    piece = crop(np.random.default_rng(0), volume, NetworkShape(8, 40, 8), np.arange(3))
    np.testing.assert_array_equal(piece[:3, :, :5], volume.fine)
    np.testing.assert_array_equal(piece[3:6], piece[2::-1])


def test_patches_show_the_head():
    fine = np.zeros((80, 80, 80), np.float32)
    fine[40:60, 40:60, 40:60] = 1
    source = PatchSource([TrainingVolume.of(fine)], run())
    assert np.mean([source.draw(index)[2] for index in range(64)]) > 0.2


def test_a_volume_without_a_head_is_refused():
    with pytest.raises(InputError, match="shows no foreground"):
        TrainingVolume.of(np.zeros((8, 8, 8), np.float32))


def test_a_slanted_slice_shows_the_slice_in_its_middle_plane():
    volume = numbered((9, 60, 70))
    block = sheared_slice(np.random.default_rng(3), volume, NetworkShape(12, 14, 16))
    middle = block[:, :, 8]
    assert any(
        np.abs(plane[row : row + 12, column : column + 14] - middle).max() < 1e-4
        for number in range(9)
        for plane in (volume.fine[number], volume.fine[number].T)
        for row in range(plane.shape[0] - 11)
        for column in range(plane.shape[1] - 13)
        if abs(plane[row, column] - middle[0, 0]) < 1e-4
    )


def test_contrast_varies_as_asked_and_not_otherwise():
    fine = numbered((8, 8, 8)).fine
    still = run().augmentation
    np.testing.assert_array_equal(augment(np.random.default_rng(0), fine, still), fine)
    inverted = augment(np.random.default_rng(0), fine, still.model_copy(update={"invert": 1.0}))
    np.testing.assert_allclose(inverted, fine.max() - fine)
    brighter = augment(np.random.default_rng(0), fine, still.model_copy(update={"gain": 0.5}))
    np.testing.assert_allclose(brighter / fine, brighter[0, 0, 0] / fine[0, 0, 0], rtol=1e-6)
    curved = augment(np.random.default_rng(0), fine, still.model_copy(update={"gamma": 0.5}))
    np.testing.assert_allclose(np.ptp(np.log(curved) / np.log(fine)), 0, atol=1e-4)
    swung = augment(np.random.default_rng(0), fine, still.model_copy(update={"bias": 0.3})) / fine
    assert 0.7 <= swung.min() < swung.max() <= 1.3


def test_degradations_are_drawn_from_their_range():
    recipe = run().degradation
    how = run("augmentation.blur=[0.5, 2]", "augmentation.noise=[0.01, 0.02]").augmentation
    random = np.random.default_rng(0)
    drawn = [drawn_recipe(random, recipe, how) for _ in range(50)]
    blurs = [one.depth.blur_fwhm for one in drawn]
    assert min(blurs) >= 1
    assert max(blurs) <= 4
    assert np.ptp(blurs) > 1
    assert all(0.01 <= one.noise.sigma <= 0.02 for one in drawn)
    assert {one.noise.kind for one in drawn} == {"gaussian"}
    assert drawn_recipe(random, recipe, run().augmentation) == recipe


def test_a_share_of_the_noise_is_that_of_a_magnitude():
    how, random = (
        run("augmentation.noise=[0.01, 0.02]", "augmentation.rician=0.5").augmentation,
        np.random.default_rng(0),
    )
    kinds = [drawn_recipe(random, named_degradation("box2x"), how).noise.kind for _ in range(50)]
    assert 10 < kinds.count("rician") < 40


def test_slices_of_several_thicknesses_are_drawn():
    thick = run("augmentation.factor=[0.75, 1.25]", degradation="thick4x")
    random = np.random.default_rng(0)
    drawn = [drawn_recipe(random, thick.degradation, thick.augmentation) for _ in range(50)]
    factors = [one.depth.factor for one in drawn]
    assert 3 <= min(factors) < 3.5
    assert 4.5 < max(factors) <= 5
    assert {one.height.factor for one in drawn} == {1}
    halved = run("augmentation.factor=[1.5, 1.5]")
    across = drawn_recipe(random, halved.degradation, halved.augmentation).width
    assert (across.factor, across.blur_fwhm) == (3, 3)
    patch = PatchSource([numbered((64, 72, 80))], thick).draw(0)
    assert patch.resampled.shape == patch.fine.shape == (8, 16, 16, 1)


def test_the_card_tells_the_range_of_factors():
    card = make_card(run("augmentation.factor=[0.75, 1.5]", degradation="thick4x"), 1, 1, 1, None)
    assert list(card.scale_range) == [(3, 6), (1, 1), (1, 1)]
    assert card.warnings((5, 1, 1), (1, 1, 1)) == []
    assert card.warnings((2, 1, 1), (1, 1, 1)) == ["scale 2 along depth: the model was trained for 3 to 6"]


@pytest.mark.parametrize("source", ["shapes", "tissues", "slices"])
def test_every_source_gives_patches_without_the_others(source):
    parts = {"volumes": 0, "slices": 0, "shapes": 0, "tissues": 0, source: 1}
    config = run(f"data.mixture={parts}".replace("'", ""))
    volumes = [numbered((40, 48, 40))] if source == "slices" else []
    patch = PatchSource(volumes, config).draw(0)
    assert patch.resampled.shape == patch.fine.shape == (8, 16, 16, 1)
    assert np.isfinite(patch.fine).all()
    assert np.ptp(patch.fine) > 0
    assert not np.array_equal(patch.resampled, patch.fine)


def test_acquisitions_are_drawn_by_block_and_each_patch_names_its_own():
    mixed = run("augmentation.acquisitions=[thick3x, thick4x, thick6x]", "training.patch=[24, 16, 16]")
    source = PatchSource([numbered((80, 72, 80))], mixed)
    patches = [source.draw(64 * turn) for turn in range(24)]
    assert {patch.number for patch in patches} == {0, 1, 2}
    assert list(make_card(mixed, 1, 1, 1, None).scale_range) == [(2, 6), (1, 2), (1, 2)]


def test_a_consistent_input_explains_the_coarse_volume():
    config = run("network.input=consistent", "augmentation.acquisitions=[kspace2x, iso2x]")
    shape = block_shape(config.training.patch, config.augmentation.acquisitions)
    volume = TrainingVolume.of(truth_like())
    source = BlockSource(
        [volume], config.data.mixture, config.augmentation.acquisitions, config.augmentation, shape, 0, "consistent"
    )
    for number in range(4):
        block = source.draw(number)
        recipe = config.augmentation.acquisitions[block.number]
        missing = degrade(block.fine, recipe) - degrade(block.resampled, recipe)
        assert np.sqrt(np.mean(missing**2)) < 2e-3


def test_a_mistaken_acquisition_is_the_first_of_the_same_scale():
    config = run("augmentation.acquisitions=[kspace2x, box2x, iso2x, thick4x]", "augmentation.mistaken=1")
    source = PatchSource([numbered((64, 72, 80))], config)
    assert {source.draw(64 * turn).number for turn in range(24)} == {0, 3}


def test_a_mistaken_acquisition_is_one_of_those_that_are_assumed():
    acquisitions = "augmentation.acquisitions=[kspace2x, box2x, iso2x, thick4x]"
    config = run(acquisitions, "augmentation.mistaken=1", "augmentation.assumed=[box2x, iso2x]")
    source = PatchSource([numbered((64, 72, 80))], config)
    assert {source.draw(64 * turn).number for turn in range(24)} == {1, 2, 3}
    with pytest.raises(ConfigError, match="assumed must name some of acquisitions, received box2x"):
        run("augmentation.acquisitions=[kspace2x]", "augmentation.assumed=[box2x]")


@pytest.mark.parametrize("reorient", [False, True])
def test_the_slice_axis_may_be_any_axis_of_the_anatomy(reorient):
    """A volume that varies along one axis: where it is found in the blocks."""
    config = run(f"augmentation.reorient={reorient}", "training.patch=[16, 16, 16]", degradation="thick4x")
    source = PatchSource([staircase(0)], config)
    varies = {
        int(np.argmax([np.ptp(source.draw(64 * turn).fine, axis=axis).max() for axis in range(3)]))
        for turn in range(16)
    }
    assert varies == ({0, 1, 2} if reorient else {0})


def test_texture_is_noise_of_the_fine_volume():
    """A target that is noisy itself: its coarse version shows the noise, less what the degradation averages out."""
    volume = TrainingVolume.of(truth_like())
    smooth, noisy = (
        PatchSource([volume], run("augmentation.gain=0", f"augmentation.texture={how}")).draw(0)
        for how in ("[0.0, 0.0]", "[0.02, 0.02]")
    )
    assert np.std(noisy.fine - smooth.fine) == pytest.approx(0.02, rel=0.05)
    assert 0.002 < np.std(noisy.resampled - smooth.resampled) < 0.015


def test_noise_damps_the_correction_of_a_patch():
    quiet = run("augmentation.noise=[0.05, 0.05]", "augmentation.noiseless=0.5")
    source = PatchSource([numbered((64, 72, 80))], quiet)
    dampings = {round(source.draw(64 * turn).damping, 3) for turn in range(16)}
    assert min(dampings) < 1e-3
    assert max(dampings) > 1


def truth_like():
    """A smooth volume well within the range that clipping leaves alone."""
    i, j, k = np.ogrid[:80, :80, :80]
    return (0.5 + 0.1 * (np.sin(i / 3) + np.sin(j / 4) + np.sin(k / 5))).astype(np.float32)
