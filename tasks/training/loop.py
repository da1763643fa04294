"""Train a restorer under MirroredStrategy, in a process of its own, and report on it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from configs.data import Mixture
from configs.errors import InputError, NotFiniteError
from configs.schema import RunConfig, Training
from models.network.losses import PatchDegradations, relative_weight, weighted
from models.network.phases import with_fast_gradients
from models.network.widening import widened_weights
from tasks.artifacts.model_card import make_card
from tasks.artifacts.saved_models import load_model, save_model
from tasks.imaging.consistency import AxisFactors, axis_factors, axis_matrices
from tasks.machine.devices import XLA, device_kind, layer_precision, mirrored_strategy
from tasks.training.blocks import PatchSource, TrainingVolume, run_degradations
from tasks.training.checkpoints import Checkpoint, last_checkpoint, write_checkpoint
from tasks.training.drawing import PatchProcesses
from tasks.training.job import TrainedModel, TrainingJob, TrainingRecord, TrainingStep, Validation
from tasks.training.networks import build_network, learning_rate_schedule, optimizer
from tasks.training.validation import Validator


def train(job: TrainingJob, should_stop: Callable[[], bool] = lambda: False) -> Iterator[TrainingRecord]:
    """Train a restorer and save it.

    Args:
        job: What to train on, how, and where to.
        should_stop: Called after every step; if it returns True, training leaves a checkpoint to go on from and ends.

    Yields:
        A record per step and per validation, and at the end, unless it was stopped, the trained model. A resumed
        training first replays the steps and validations before its checkpoint.

    Raises:
        InputError: The devices do not fit the replicas, the checkpoint cannot be gone on from, or the weights to start
            from are those of another network or not finite.
        NotFiniteError: A loss, a weight or a validation is NaN or infinite; the checkpoints before it stay.
    """
    checkpoint = last_checkpoint(job.checkpoints, job.config) if job.resume and job.checkpoints else None
    taken = checkpoint.step if checkpoint is not None else 0
    # They start while the network is built.
    drawing = PatchProcesses(job.volumes, job.config, job.drawing_processes, taken) if job.drawing_processes else None
    with drawing or nullcontext():
        yield from _trained(job, should_stop, checkpoint, drawing)


def _trained(
    job: TrainingJob, should_stop: Callable[[], bool], checkpoint: Checkpoint | None, drawing: PatchProcesses | None
) -> Iterator[TrainingRecord]:
    """Train from a checkpoint, or from the start, on patches that processes draw, or threads; see `train`."""
    config, training = job.config, job.config.training
    keras.utils.set_random_seed(training.seed)
    strategy = mirrored_strategy(training.replicas, training.batch_size)
    with strategy.scope():
        trainer = Trainer(config, strategy)
    if job.start_from is not None:
        trainer.start_from(job.start_from)
    validator = Validator(job.validation, config, trainer.averaged) if job.validation else None
    scores_start = job.start_from is not None and training.early_stopping is not None
    taken, losses = 0, np.zeros(training.steps)
    if checkpoint is not None:
        taken = checkpoint.step
        losses[:taken] = checkpoint.losses
        trainer.assign(checkpoint.variables)
        if validator is not None:
            validator.go_on(checkpoint)
        yield from _replayed(checkpoint, trainer, validator, scored_start=scores_start)
    elif validator is not None and scores_start:
        yield Validation(0, _validated(validator, 0, 0), stops=False)
    resumed_from = kept = taken

    source = PatchSource(job.volumes, config)
    started, waited, stepped = time.perf_counter(), 0.0, 0.0
    stops = validator is not None and validator.exhausted
    batches = _batches(drawing, source, strategy, training, taken)
    while taken < training.steps and not stops:
        asked = time.perf_counter()
        batch = next(batches)
        given = time.perf_counter()
        losses[taken] = trainer.step(batch)
        _require_finite_step(losses[taken], taken, trainer, source, kept)
        if taken > resumed_from:  # in the first step of a start the pipeline fills and the graph is traced
            waited, stepped = waited + given - asked, stepped + time.perf_counter() - given
        taken += 1
        yield TrainingStep(taken, float(losses[taken - 1]), trainer.learning_rate(taken - 1))
        if validator is not None and validator.is_due(taken):
            psnr = _validated(validator, taken, kept)
            stops = validator.exhausted
            yield Validation(taken, psnr, stops)
        every, leaves = training.checkpoints.every, should_stop()
        if job.checkpoints is not None and (
            leaves or (every and (taken % every == 0 or taken == training.steps or stops))
        ):
            state = Checkpoint(taken, trainer.variables(), losses[:taken])
            _require_finite(state.is_finite, f"the checkpoint after step {taken}: its optimizer is not finite", kept)
            write_checkpoint(job.checkpoints, validator.noted(state) if validator is not None else state, config)
            kept = taken
        if leaves:
            return
    seconds = time.perf_counter() - started

    final = validator.best if validator is not None and validator.best else trainer.averaged()
    saved = build_network(config.network)
    saved.set_weights(list(final))
    parameters = int(sum(value.size for value in saved.get_weights()))
    spacings = [size for volume in job.volumes for size in _sharp_spacing(volume, config.data.mixture)]
    card = make_card(config, parameters, taken, len(job.volumes), (min(spacings), max(spacings)) if spacings else None)
    save_model(saved, card, job.model_path)
    yield TrainedModel(
        model=job.model_path,
        parameters=parameters,
        seconds=seconds,
        waiting_share=waited / (waited + stepped) if stepped else 0.0,
        replicas=strategy.num_replicas_in_sync,
        device=device_kind(),
        latent_shape=(
            training.batch_size,
            *(size // stride for size, stride in zip(training.patch, config.network.total_stride, strict=True)),
            config.network.latent_filters,
        ),
        steps=taken,
        resumed_from=resumed_from,
        validation_psnr=validator.best_psnr if validator is not None and validator.best else None,
        start_psnr=validator.history[0] if validator is not None and scores_start and validator.history else None,
    )


def _batches(
    drawing: PatchProcesses | None,
    source: PatchSource,
    strategy: tf.distribute.Strategy,
    training: Training,
    steps_taken: int,
) -> Iterator[Any]:
    """Yield the batches of a training from a step on, drawn by processes or by threads of this one."""
    if drawing is None:
        yield from strategy.experimental_distribute_dataset(patch_dataset(source, training, steps_taken))
        return
    for batch in strategy.experimental_distribute_dataset(drawn_dataset(drawing, training, steps_taken)):
        if drawing.error is not None:
            raise drawing.error
        yield batch


def _validated(validator: Validator, taken: int, kept: int) -> float:
    psnr = validator.validate()
    _require_finite(np.isfinite(psnr), f"the validation after step {taken}: its score is {psnr}", kept)
    return psnr


def _require_finite(finite: Any, place: str, kept: int) -> None:  # noqa: ANN401 - a truth value, NumPy's or Python's
    """Stop training for good unless all is finite; `kept` is the step of the last checkpoint, 0 if there is none."""
    if not finite:
        raise NotFiniteError(
            f"Training stopped at {place}.",
            "Lower training.learning_rate or training.clip_norm, or leave out the volume, and start again."
            + (f" The checkpoint after step {kept} is kept." if kept else ""),
        )


def _require_finite_step(loss: float, taken: int, trainer: "Trainer", source: PatchSource, kept: int) -> None:
    """Stop training for good where the loss of a step is not finite, and name the patches that made it so."""
    if not np.isfinite(loss):
        patches = ", ".join(source.describe(index) for index in trainer.bad_patches(taken))
        _require_finite(False, f"step {taken + 1}: its loss or gradient is NaN or infinite ({patches})", kept)  # noqa: FBT003


def _replayed(
    checkpoint: Checkpoint, trainer: "Trainer", validator: Validator | None, *, scored_start: bool
) -> Iterator[TrainingRecord]:
    """Replay the steps and validations before a checkpoint, that of the weights at the start first if it was made."""
    validations = iter(checkpoint.validations)
    if validator is not None and scored_start and (psnr := next(validations, None)) is not None:
        yield Validation(0, psnr, stops=False)
    for step, loss in enumerate(checkpoint.losses, start=1):
        yield TrainingStep(step, float(loss), trainer.learning_rate(step - 1))
        if validator is not None and validator.is_due(step) and (psnr := next(validations, None)) is not None:
            yield Validation(step, psnr, validator.exhausted and step == checkpoint.step)


class Trainer:
    """A network, its optimizer and the moving average of its weights, made inside a strategy's scope.

    Args:
        config: The run.
        strategy: Over the devices that train.
    """

    def __init__(self, config: RunConfig, strategy: tf.distribute.Strategy) -> None:
        training = config.training
        self._training, self._strategy = training, strategy
        network = build_network(config.network, layer_precision(training.mixed_precision))
        self.model = with_fast_gradients(network, device_kind())
        self._schedule = learning_rate_schedule(training)
        self.optimizer = optimizer(training, self._schedule)
        self.optimizer.build(self.model.trainable_variables)
        self._weights = [weight.value for weight in self.model.trainable_variables]
        self._averages = [tf.Variable(weight, trainable=False) for weight in self._weights]
        self._loss = weighted(dict(training.losses.items()))
        self._degradations = patch_degradations(config)
        self._step: Callable[..., tuple[tf.Tensor, tf.Tensor]] = tf.function(self._global_step, jit_compile=XLA)
        self._patch_losses: Any = ()

    def step(self, batch: Any) -> float:  # noqa: ANN401 - per-replica tensors of TensorFlow's making
        """Take an optimizer step; returns the loss, NaN if it or a weight after the step is not finite."""
        loss, self._patch_losses = self._step(batch)
        return float(loss)

    def bad_patches(self, steps_taken: int) -> list[int]:
        """Return the patches of the last step whose loss is not finite, by index; all of them where each is.

        Args:
            steps_taken: Before that step.
        """
        finite = np.isfinite(self._patch_losses)
        first = steps_taken * self._training.batch_size
        return [first + place for place, is_finite in enumerate(finite) if not is_finite or finite.all()]

    def learning_rate(self, steps_taken: int) -> float:
        """The learning rate of the next step."""
        return float(self._schedule(steps_taken))

    def averaged(self) -> list[Any]:
        """Return the averaged weights, which are validated and saved."""
        return [value.numpy() for value in (self._averages if self._training.average else self._weights)]

    def variables(self) -> list[Any]:
        """All that the next step depends on."""
        return [variable.numpy() for variable in self._all()]

    def assign(self, values: Any) -> None:  # noqa: ANN401 - NumPy arrays of several types
        """Put back what `variables` gave."""
        for variable, value in zip(self._all(), values, strict=True):
            variable.assign(value)

    def start_from(self, path: Any) -> None:  # noqa: ANN401 - a path
        """Take over the weights of a saved model, of the configured network or of one with fewer channels."""
        given = widened_weights(self.model, load_model(path))
        if given is None:
            raise InputError(
                f"Cannot start from {path.name}: its weights are those of another network than the configured one.",
                "Give the section network that it was trained with, or one with more channels, or start without it.",
            )
        if not all(np.isfinite(value).all() for value in given):
            raise InputError(
                f"Cannot start from {path.name}: some of its weights are NaN or infinite.", "Start from another model."
            )
        for weight, average, value in zip(self._weights, self._averages, given, strict=True):
            weight.assign(value)
            average.assign(value)

    def _all(self) -> list[Any]:
        return [*self._weights, *(variable.value for variable in self.optimizer.variables), *self._averages]

    def _global_step(self, batch: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor]:
        shares, patch_losses = self._strategy.run(self._replica_step, args=batch)
        loss = self._strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)
        # An average of all weights from the start would remember the random ones: it begins short.
        taken = tf.cast(self.optimizer.iterations.value, tf.float32)
        momentum = tf.minimum(self._training.average, (1.0 + taken) / (10.0 + taken))
        for average, weight in zip(self._averages, self._weights, strict=True):
            self._strategy.extended.update(
                average, lambda old, new: old.assign(momentum * old + (1.0 - momentum) * new), args=(weight,)
            )
        # With the loss, so that the driver waits for one number: a gradient that is not finite spoils the weights.
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(weight)) for weight in self._weights])
        losses = tf.concat(self._strategy.experimental_local_results(patch_losses), axis=0)
        return tf.where(finite, loss, np.nan), losses

    def _replica_step(
        self, resampled: tf.Tensor, fine: tf.Tensor, weight: tf.Tensor, number: tf.Tensor, damping: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        replicas = self._strategy.num_replicas_in_sync
        with tf.GradientTape() as tape:
            output = tf.cast(self.model(resampled, training=True), tf.float32)
            # The sum over the replicas of these is the mean over the global batch, whatever their number.
            degradation = self._degradations.of_patches(number, damping)
            if self._training.relative:
                weight *= relative_weight(resampled, fine, self._training.relative)
            patch_losses = weight * self._loss(fine, output, degradation)
            loss = tf.reduce_sum(patch_losses) / self._training.batch_size
            if self._training.regularisation:
                kernels = [tf.reduce_sum(tf.square(kernel)) for kernel in self._weights if len(kernel.shape) > 1]
                loss += self._training.regularisation * tf.add_n(kernels) / replicas
        gradients = tape.gradient(loss, self._weights)
        if self._training.clip_norm is not None:
            # Clipped as a whole: the optimizer would clip the part of each replica, which is another thing.
            gradients = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients, _ = tf.clip_by_global_norm(gradients, self._training.clip_norm)
            gradients = [gradient / replicas for gradient in gradients]
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return loss, patch_losses


def patch_degradations(config: RunConfig) -> PatchDegradations:
    """The degradations of a run as losses apply them to patches."""
    patch, recipes = config.training.patch, run_degradations(config)
    matrices = list(zip(*(axis_matrices(patch, recipe) for recipe in recipes), strict=True))
    factors = list(zip(*(axis_factors(patch, recipe) for recipe in recipes), strict=True))
    bases = [
        _stacked([one and one.fine_basis for one in axis], size) for axis, size in zip(factors, patch, strict=True)
    ]
    squared = [
        np.ones((len(recipes), size), np.float32)
        if basis is None
        else np.stack([_squared_singular(one, size, basis.shape[-1]) for one in axis])
        for axis, basis, size in zip(factors, bases, patch, strict=True)
    ]
    return PatchDegradations([_stacked(axis, size) for axis, size in zip(matrices, patch, strict=True)], bases, squared)


def _stacked(matrices: Sequence[NDArray[np.float32] | None], size: int) -> NDArray[np.float32] | None:
    """Stack one axis' matrices, zero beyond each; the identity where the axis stays, None where it always does."""
    if all(matrix is None for matrix in matrices):
        return None
    whole = [np.eye(size) if matrix is None else matrix for matrix in matrices]
    rows, columns = (max(matrix.shape[side] for matrix in whole) for side in (0, 1))
    padded = [np.pad(one, ((0, rows - one.shape[0]), (0, columns - one.shape[1]))) for one in whole]
    return np.stack(padded).astype(np.float32)


def _squared_singular(factors: AxisFactors | None, size: int, rank: int) -> NDArray[np.float32]:
    squared = np.ones(size) if factors is None else factors.singular**2
    return np.pad(squared, (0, rank - squared.size)).astype(np.float32)


def patch_dataset(source: PatchSource, training: Training, steps_taken: int = 0) -> tf.data.Dataset:
    """Batches of patches, the same from the same seed, wherever they are taken up.

    Args:
        source: Draws the patches.
        training: Patch shape and batch size.
        steps_taken: Batches to leave out.

    Returns:
        Batches up to the last step of input and target, float32 `(batch, depth, height, width, 1)`, and for each patch
        its weight, float32, the number of its degradation, int32, and the damping of its correction, float32.
    """

    def draw(index: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a NumPy scalar of TensorFlow's making
        patch = source.draw(int(index))
        weight = patch.share if training.weigh_patches else np.float32(1)
        return patch.resampled, patch.fine, weight, np.int32(patch.number), np.float32(patch.damping)

    return (
        tf.data.Dataset.range(steps_taken * training.batch_size, training.steps * training.batch_size)
        .map(_tensors_of(draw, training), num_parallel_calls=2, deterministic=True)
        .batch(training.batch_size, drop_remainder=True)
        .prefetch(8)
        .with_options(_untuned())
    )


def drawn_dataset(processes: PatchProcesses, training: Training, steps_taken: int = 0) -> tf.data.Dataset:
    """The batches of `patch_dataset`, drawn by processes; zeros once they have an error."""

    def draw(_: Any) -> tuple[Any, ...]:  # noqa: ANN401 - as above
        try:
            batch = processes.next_batch()
        except Exception:  # noqa: BLE001 - TensorFlow would let its text alone through
            batch = processes.no_batch()
        weight = batch.share if training.weigh_patches else np.ones_like(batch.share)
        return batch.resampled, batch.fine, weight, batch.number, batch.damping

    return (
        tf.data.Dataset.range(steps_taken, training.steps)
        .map(_tensors_of(draw, training, training.batch_size), num_parallel_calls=1, deterministic=True)
        .prefetch(4)
        .with_options(_untuned())
    )


def _tensors_of(
    draw: Callable[[Any], tuple[Any, ...]], training: Training, *batch: int
) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """Make a function on tensors of one that draws a patch, or a batch of so many."""
    shapes = ((*batch, *training.patch, 1), (*batch, *training.patch, 1), batch, batch, batch)
    types = (tf.float32, tf.float32, tf.float32, tf.int32, tf.float32)

    def tensors(index: tf.Tensor) -> tuple[tf.Tensor, ...]:
        drawn = tf.numpy_function(draw, [index], types, stateful=False)
        return tuple(tf.ensure_shape(value, shape) for value, shape in zip(drawn, shapes, strict=True))

    return tensors


def _untuned() -> tf.data.Options:
    options = tf.data.Options()
    # Nothing is left to tune, and the thread that would sleeps up to a minute at a time, with the end waiting for it.
    options.autotune.enabled = False
    return options


def _sharp_spacing(volume: TrainingVolume, mixture: Mixture) -> Sequence[float]:
    """The mm per voxel at which a volume trains: across its slices only where it trains as it is."""
    spacing = volume.spacing or ()
    return spacing if mixture.volumes else spacing[1:]
