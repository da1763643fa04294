import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs.errors import InputError, NotFiniteError, RunError
from configs.load import load_config
from models.network.losses import LOSSES
from tasks.artifacts.network_file import read_network
from tasks.artifacts.saved_models import load_model
from tasks.files.lock import locked
from tasks.imaging.consistency import correct
from tasks.training.blocks import PatchSource, TrainingVolume
from tasks.training.checkpoints import Checkpoint, last_checkpoint, write_checkpoint
from tasks.training.job import TrainingStep
from tasks.training.loop import train
from tasks.training.networks import build_network, learning_rate_schedule
from tasks.training.start import run_training
from tests.tasks.small_training import outcome, small_job, validation_volume, volume, weights_of

ROOT = Path(__file__).parents[2]


def test_training_lowers_the_loss_and_leaves_a_model_that_restores(tmp_path):
    job = small_job(tmp_path, "training.steps=60", "training.learning_rate=5e-3")
    losses, _, trained = outcome(train(job))
    assert sorted(losses) == list(range(1, 61))
    assert np.mean([losses[step] for step in range(41, 61)]) < 0.9 * np.mean([losses[step] for step in range(1, 11)])
    held = validation_volume(job.config, seed=5)
    model = keras.saving.load_model(trained.model, compile=False, safe_mode=True)
    restored = np.asarray(model(held.resampled[None, ..., None]))[0, ..., 0]
    cubic, network = (
        correct(estimate, held.coarse, job.config.degradation).voxels for estimate in (held.resampled, restored)
    )
    assert np.mean((network - held.fine) ** 2) < np.mean((cubic - held.fine) ** 2)
    assert trained.latent_shape == (2, 4, 4, 4, 4)
    assert 0 < trained.waiting_share < 1


@pytest.mark.parametrize(
    "options", [(), ("training.optimizer=adamw", "training.weigh_patches=true", "training.relative=0.5")]
)
def test_a_resumed_training_ends_with_the_same_bits(tmp_path, options):
    rules = ("training.steps=9", "training.checkpoints={every: 3, keep: 2}", *options)
    whole = outcome(train(small_job(tmp_path / "whole", *rules)))
    job = small_job(tmp_path / "broken", *rules, checkpoints=tmp_path / "broken" / "checkpoints")
    list(islice(train(job), 8))
    # As a writer that was killed leaves it.
    (job.checkpoints / ".1.partial.step-00000009.npz").write_bytes(b"PK")
    again = outcome(train(replace(job, resume=True)))
    assert again[2].resumed_from == 6
    assert again[0] == whole[0]
    assert again[2].model.read_bytes() == whole[2].model.read_bytes()
    assert [path.name for path in sorted(job.checkpoints.iterdir())] == ["step-00000006.npz", "step-00000009.npz"]


def test_processes_and_threads_train_the_same_weights_and_continue_each_other(tmp_path):
    rules = ("training.steps=7", "training.weigh_patches=true", "training.checkpoints.every=3")
    whole = outcome(train(small_job(tmp_path / "whole", *rules)))
    job = small_job(tmp_path / "broken", *rules, checkpoints=tmp_path / "broken" / "checkpoints")
    list(islice(train(replace(job, drawing_processes=1)), 5))
    again = outcome(train(replace(job, resume=True, drawing_processes=2)))
    assert again[2].resumed_from == 3
    assert again[0] == whole[0]
    assert again[2].model.read_bytes() == whole[2].model.read_bytes()


def test_a_training_that_is_told_to_stop_leaves_a_checkpoint_and_no_model(tmp_path):
    rules = ("training.steps=9", "training.checkpoints.every=5")
    whole = outcome(train(small_job(tmp_path / "whole", *rules)))
    job = small_job(tmp_path / "stopped", *rules, checkpoints=tmp_path / "stopped" / "checkpoints")
    reported = list(train(job, should_stop=iter([False] * 6 + [True]).__next__))
    assert [isinstance(record, TrainingStep) and record.step for record in reported] == list(range(1, 8))
    assert not job.model_path.exists()
    again = outcome(train(replace(job, resume=True)))
    assert again[2].resumed_from == 7
    assert again[0] == whole[0]
    for one, other in zip(weights_of(whole[2]), weights_of(again[2]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def two_checkpoints(tmp_path):
    """A job with a checkpoint after its first and its second step."""
    job = small_job(tmp_path, "training.steps=2", checkpoints=tmp_path / "checkpoints", resume=True)
    for step in (1, 2):
        write_checkpoint(job.checkpoints, Checkpoint(step, [np.ones(3)], np.ones(step)), job.config)
    return job


def test_a_checkpoint_of_another_configuration_is_refused(two_checkpoints):
    other = small_job(two_checkpoints.checkpoints, "training.steps=3").config
    with pytest.raises(InputError, match="written with another configuration or by another version"):
        last_checkpoint(two_checkpoints.checkpoints, other)


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "another archive", "no archive", "lacks a member", "lacks all arrays"]
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(two_checkpoints, damage):
    job = two_checkpoints
    first, second = (job.checkpoints / f"step-0000000{step}.npz" for step in (1, 2))
    if damage == "another archive":
        np.savez(second, other=np.ones(3))
    elif damage.startswith("lacks"):
        with np.load(second) as stored:
            lacking = ("variable-0",) if damage == "lacks a member" else ("variable-", "best-", "arrays")
            np.savez(second, **{name: value for name, value in stored.items() if not name.startswith(lacking)})
    else:
        whole = second.read_bytes()
        second.write_bytes({"empty": b"", "truncated": whole[:-100], "no archive": b"x" * len(whole)}[damage])
    found = last_checkpoint(job.checkpoints, job.config)
    assert found is not None
    assert found.step == 1
    first.unlink()
    with pytest.raises(InputError, match=r"step-00000002\.npz is not a checkpoint .*, nor is any other"):
        last_checkpoint(job.checkpoints, job.config)


def test_a_training_whose_folder_was_taken_over_writes_nothing_more(tmp_path):
    job = small_job(tmp_path, "training.steps=9", "training.checkpoints.every=1", checkpoints=tmp_path / "checkpoints")
    with locked(tmp_path / "run.lock", "the run") as lock:
        records = run_training(replace(job, lock=lock))
        assert all(isinstance(next(records), TrainingStep) for _ in range(3))
        (tmp_path / "run.lock").write_text("another run")
        written = sorted(job.checkpoints.iterdir())
        with pytest.raises(RunError, match="another run has taken it over"):
            list(records)
    assert sorted(job.checkpoints.iterdir()) == written
    assert (tmp_path / "run.lock").read_text() == "another run"
    assert not job.model_path.exists()


def test_a_renewed_lock_is_lost_to_whoever_has_the_old_one(tmp_path):
    with locked(tmp_path / "run.lock", "the run") as old:
        new = old.renewed()
        new.require_held()
        with pytest.raises(RunError, match="another run has taken it over"):
            old.require_held()
        with pytest.raises(RunError, match="another run has taken it over"):
            old.renewed()
    assert not list(tmp_path.iterdir())


def test_training_stops_when_validation_gets_no_better_and_keeps_the_best(tmp_path):
    job = small_job(
        tmp_path,
        "training.steps=40",
        "training.optimizer=sgd",
        "training.learning_rate=1e-30",  # too little to change any output
        "training.early_stopping={every: 2, patience: 3}",
        "training.checkpoints.every=4",
    )
    job = replace(job, validation=[validation_volume(job.config)], checkpoints=tmp_path / "checkpoints")
    losses, validations, trained = outcome(train(job))
    assert [validation.stops for validation in validations] == [False, False, False, True]
    assert len(losses) == trained.steps == 8
    again = outcome(train(replace(job, resume=True)))
    assert again[2].steps == again[2].resumed_from == 8
    assert again[1] == validations
    assert again[2].validation_psnr == trained.validation_psnr == validations[0].psnr
    for one, other in zip(weights_of(trained), weights_of(again[2]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_early_stopping_the_last_weights_are_scored_and_kept(tmp_path):
    job = small_job(tmp_path, "training.steps=3")
    job = replace(job, validation=[validation_volume(job.config)])
    losses, (validation,), trained = outcome(train(job))
    assert len(losses) == validation.step == 3
    assert trained.validation_psnr == validation.psnr
    plain = outcome(train(small_job(tmp_path, "training.steps=3")))[2]
    for one, other in zip(weights_of(trained), weights_of(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_may_start_from_given_weights(tmp_path):
    first = outcome(train(small_job(tmp_path / "first", "training.steps=3")))[2]
    still = ("training.optimizer=sgd", "training.learning_rate=1e-12", "training.steps=1")
    second = outcome(train(small_job(tmp_path / "second", *still, start_from=first.model)))[2]
    for one, other in zip(weights_of(first), weights_of(second), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


WIDER = (
    "network.latent_filters=6",
    "network.stages=[{filters: 7, kernel_size: [4, 4, 4], strides: [2, 2, 2]},"
    " {filters: 1, kernel_size: [3, 4, 4], strides: [1, 2, 2]}]",
)


def test_training_may_start_from_a_network_of_fewer_channels(tmp_path):
    first = outcome(train(small_job(tmp_path / "first", "training.steps=3", "network.skip=add")))[2]
    options = ("training.steps=3", "network.skip=add", *WIDER)
    still = ("training.optimizer=sgd", "training.learning_rate=1e-12")
    begun = outcome(train(small_job(tmp_path / "begun", *options, *still, start_from=first.model)))[2]
    narrow, same = load_model(first.model), load_model(begun.model)
    patch = np.random.default_rng(0).random((1, 16, 16, 16, 1), np.float32)
    assert same.count_params() > narrow.count_params()
    np.testing.assert_allclose(same(patch), narrow(patch), atol=1e-6)

    # The last stage begins to read the channels that are new.
    trained = outcome(train(small_job(tmp_path / "trained", *options, start_from=first.model)))[2]
    read = load_model(trained.model).get_layer("stage_1").get_weights()[0]
    assert read.shape[-1] == 7
    assert np.abs(read[..., 4:]).min() > 0


@pytest.mark.parametrize(
    ("skip", "overrides"),
    [
        ("add", ("network.latent_filters=3",)),
        ("add", ("network.convolutions=0",)),
        ("add", (WIDER[1].replace("[4, 4, 4]", "[2, 2, 2]", 1),)),
        ("concatenate", ("network.skip=concatenate", *WIDER)),
        # What reads both of 4 channels there reads 8 here, and not the same ones.
        ("concatenate", (WIDER[0], WIDER[1].replace("filters: 7", "filters: 8"))),
    ],
)
def test_training_starts_from_no_other_network(tmp_path, skip, overrides):
    first = outcome(train(small_job(tmp_path / "first", "training.steps=1", f"network.skip={skip}")))[2]
    with pytest.raises(InputError, match=r"Cannot start from model\.keras: its weights are those of another network"):
        outcome(train(small_job(tmp_path, "network.skip=add", *overrides, start_from=first.model)))


@pytest.mark.parametrize(("rate", "is_better"), [(1e-3, True), (1e-30, False)])
def test_early_stopping_keeps_the_weights_of_the_start_until_others_are_better(tmp_path, rate, is_better):
    first = outcome(train(small_job(tmp_path / "first", "training.steps=3")))[2]
    rules = (f"training.learning_rate={rate}", "training.steps=20", "training.early_stopping={every: 5, patience: 9}")
    job = small_job(tmp_path / "second", *rules, "training.checkpoints.every=5", start_from=first.model)
    job = replace(job, validation=[validation_volume(job.config)], checkpoints=tmp_path / "checkpoints")
    _, validations, trained = outcome(train(job))
    assert [validation.step for validation in validations] == [0, 5, 10, 15, 20]
    assert trained.start_psnr == validations[0].psnr
    assert trained.validation_psnr == max(validation.psnr for validation in validations[:: 1 if is_better else 5])
    pairs = list(zip(weights_of(first), weights_of(trained), strict=True))
    assert all(np.array_equal(one, other) for one, other in pairs) == (not is_better)
    again = outcome(train(replace(job, resume=True)))
    assert (again[1], again[2].start_psnr) == (validations, trained.start_psnr)


@pytest.mark.parametrize("route", ["iso2x", "iso2x-three-stage"])
def test_four_and_three_stages_train(tmp_path, route):
    network = load_config(route).network
    rules = (f"network={network.model_dump_json()}", "training.patch=[8, 16, 16]", "training.steps=2")
    trained = outcome(train(small_job(tmp_path, *rules)))[2]
    assert trained.latent_shape == (2, 1, 1, 1, 64)
    card = read_network(trained.model).card
    assert card is not None
    assert card.network == network.model_copy(update={"convolutions": network.convolutions_per_level})


def test_half_precision_trains_and_single_precision_is_saved(tmp_path):
    trained = outcome(train(small_job(tmp_path, "training.steps=3", "training.mixed_precision=bfloat16")))[2]
    model = keras.saving.load_model(trained.model, compile=False, safe_mode=True)
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert any(value.any() for value in model.get_layer("stage_1").get_weights())


def test_the_model_carries_its_card(tmp_path):
    trained = outcome(train(small_job(tmp_path, "training.steps=1", degradation="thick4x")))[2]
    card = read_network(trained.model).card
    assert card is not None
    assert card.degradation.name == "thick4x"
    assert card.steps == 1
    assert card.parameters == trained.parameters
    assert [stage.filters for stage in card.stages] == [4, 1]
    assert card.versions["keras"] == keras.__version__
    assert card.warnings((4.0, 1.0, 1.0), (1.0, 1.0, 1.0)) == []
    assert card.warnings((2.0, 1.0, 1.0), (1.0, 1.0, 1.0)) == ["scale 2 along depth: the model was trained for 4"]


def test_the_learning_rate_rises_and_falls(tmp_path):
    training = small_job(tmp_path, "training.steps=20", "training.warmup_steps=5").config.training
    rates = [float(learning_rate_schedule(training)(step)) for step in range(20)]
    assert rates[0] == 0
    assert np.argmax(rates) == 5
    assert rates[5] == pytest.approx(training.learning_rate)
    assert (np.diff(rates[5:]) < 0).all()
    assert rates[-1] < 0.1 * training.learning_rate


def test_the_default_network_is_built_from_keras_layers_alone(tmp_path):
    model = build_network(small_job(tmp_path).config.network)
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}


REPLICAS = """
import sys
from pathlib import Path
import numpy as np
from configs.errors import NotFiniteError
from tasks.training.blocks import PatchSource
from tasks.training.loop import train
from tests.tasks.small_training import outcome, small_job, weights_of

rules = ("training.steps=20", "training.optimizer=sgd", "training.learning_rate=0.5", "training.batch_size=4",
         "training.regularisation=1e-3", "training.weigh_patches=true", *sys.argv[2:])
results = {}
for replicas in (2, 1):
    options = {"drawing_processes": replicas - 1}  # by a process and by threads
    job = small_job(Path(sys.argv[1]) / str(replicas), *rules, f"training.replicas={replicas}", **options)
    losses, _, trained = outcome(train(job))
    assert trained.replicas == replicas
    results[replicas] = losses, weights_of(trained)

def draw(self, number, drawn=PatchSource.draw):
    patch = drawn(self, number)
    return patch._replace(share=np.float32("nan")) if number == 6 else patch

PatchSource.draw = draw
try:
    outcome(train(small_job(Path(sys.argv[1]), *rules, "training.replicas=2")))
except NotFiniteError as error:
    assert "step 2: its loss or gradient is NaN or infinite (patch 6 from volumes (volume 1))" in str(error), error
print(max(np.abs(a - b).max() for a, b in zip(results[1][1], results[2][1], strict=True)),
      max(abs(results[1][0][step] - results[2][0][step]) for step in range(1, 21)),
      results[1][0][1] - results[1][0][20])
"""


@pytest.mark.parametrize("clip", ["0.05", pytest.param("null", marks=pytest.mark.slow)])
def test_one_replica_and_two_end_with_the_same_weights(tmp_path, clip):
    # Logical devices are settled once per process, before TensorFlow touches one.
    ran = subprocess.run(
        [sys.executable, "-c", REPLICAS, str(tmp_path), f"training.clip_norm={clip}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    weights, losses, fallen = map(float, ran.stdout.split()[-3:])
    assert weights < 1e-5
    assert losses < 1e-5
    assert fallen > 1e-4


def test_a_mixture_of_acquisitions_trains_one_network(tmp_path):
    """From the same start, on patches that it has not seen, the loss is lower after training than before."""
    mixture = "augmentation.acquisitions=[kspace2x, box2x, thick4x]"
    options = (mixture, "network.input=consistent", "training.average=0")
    _, _, trained = outcome(train(small_job(tmp_path, *options, "training.steps=120")))
    assert read_network(trained.model).needs_acquisition
    (tmp_path / "later").mkdir()
    later = small_job(
        tmp_path / "later", *options, "training.seed=1", "training.steps=8", "training.learning_rate=1e-9"
    )
    untrained, _, _ = outcome(train(later))
    losses, _, _ = outcome(train(replace(later, start_from=trained.model)))
    assert sum(losses.values()) < sum(untrained.values())


def poisoned(index):
    """Make one patch of a run hold a value that is not finite, as no file that is read can."""
    drawn = PatchSource.draw

    def draw(self, number):
        patch = drawn(self, number)
        return patch._replace(fine=np.full_like(patch.fine, np.nan)) if number == index else patch

    return draw


def test_training_stops_at_the_first_loss_that_is_not_finite(tmp_path, monkeypatch):
    rules = ("training.steps=9", "training.checkpoints.every=3", "data.mixture={volumes: 1, shapes: 1}")
    job = small_job(tmp_path, *rules, checkpoints=tmp_path / "checkpoints")
    monkeypatch.setattr(PatchSource, "draw", poisoned(9))
    with pytest.raises(NotFiniteError) as stopped:
        list(train(job))
    source = PatchSource(job.volumes, job.config).describe(9)
    assert source in {"patch 9 from shapes", "patch 9 from volumes (volume 1)"}
    assert stopped.value.problem == f"Training stopped at step 5: its loss or gradient is NaN or infinite ({source})."
    assert "The checkpoint after step 3 is kept." in stopped.value.remedy
    assert not job.model_path.exists()
    kept = last_checkpoint(job.checkpoints, job.config)
    assert kept is not None
    assert (kept.step, kept.is_finite) == (3, True)

    monkeypatch.undo()
    again = outcome(train(replace(job, resume=True)))
    assert again[2].resumed_from == 3


def test_errors_of_drawing_processes_are_those_of_threads(tmp_path):
    """Through TensorFlow, which knows only their text."""
    job = small_job(tmp_path, "training.steps=9")
    spoiled = [*job.volumes, TrainingVolume(np.full_like(volume(), np.nan), np.arange(48**3))]
    with pytest.raises(
        NotFiniteError, match=r"its loss or gradient is NaN or infinite \(patch \d+ from volumes \(vol"
    ) as one:
        list(train(replace(job, volumes=spoiled)))
    with pytest.raises(NotFiniteError) as other:
        list(train(replace(job, volumes=spoiled, drawing_processes=1)))
    assert str(one.value) == str(other.value)
    nowhere = TrainingVolume(volume(), np.array([], np.int64))
    with pytest.raises(ValueError, match=r"^high <= 0$"):
        list(train(replace(job, volumes=[nowhere], drawing_processes=1)))


def test_a_gradient_that_is_not_finite_stops_the_step_that_it_spoils(tmp_path, monkeypatch):
    """The loss of the step is finite; its gradient at an error of 0 is not."""
    monkeypatch.setitem(LOSSES, "l1", lambda _, output, __: tf.reduce_mean(tf.sqrt(output - output), (1, 2, 3, 4)))
    job = small_job(tmp_path, "training.steps=3", "training.losses={l1: 1.0}")
    with pytest.raises(NotFiniteError, match=r"Training stopped at step 1: .* \(patch 0 from volumes .*, patch 1 from"):
        list(train(job))


def test_a_validation_that_is_not_finite_stops_the_training(tmp_path):
    job = small_job(tmp_path, "training.steps=4", "training.early_stopping={every: 2, patience: 3}")
    held = validation_volume(job.config)
    bad = replace(held, fine=np.where(held.fine > 0.5, np.float32(np.inf), held.fine))
    with pytest.raises(NotFiniteError, match="Training stopped at the validation after step 2: its score is -inf"):
        list(train(replace(job, validation=[held, bad])))


def test_a_checkpoint_and_weights_that_are_not_finite_are_refused(tmp_path):
    job = small_job(tmp_path, "training.steps=2", "training.checkpoints.every=1", checkpoints=tmp_path / "checkpoints")
    trained = outcome(train(job))[2]
    good = last_checkpoint(job.checkpoints, job.config)
    assert good is not None
    spoiled = [value if value.dtype.kind == "i" else np.full_like(value, np.inf) for value in good.variables]
    write_checkpoint(job.checkpoints, replace(good, variables=spoiled), job.config)
    with pytest.raises(InputError, match=r"step-00000002\.npz: some of its values are NaN or infinite"):
        outcome(train(replace(job, resume=True)))

    model = keras.saving.load_model(trained.model, compile=False)
    model.set_weights([np.full_like(value, np.nan) for value in model.get_weights()])
    model.save(tmp_path / "bad.keras")
    with pytest.raises(InputError, match=r"Cannot start from bad\.keras: some of its weights are NaN or infinite"):
        outcome(train(small_job(tmp_path, start_from=tmp_path / "bad.keras")))
