import keras
import numpy as np
import pytest

from models.stages.presets import LATENT, PRESETS
from models.stages.report import describe
from models.stages.stage import Stage
from models.stages.upsampler import build_twin, build_upsampler, compare_implementations
from tests.models.scatter import as_tensorflow, as_torch

LOPSIDED = (
    Stage(5, (3, 4, 5), (1, 2, 3)),
    Stage(2, (2, 1, 7), (4, 1, 2), padding="valid"),
    Stage(1, (3, 3, 3), (1, 1, 1), (1, 2, 3)),
)
CASES = {**{name: (LATENT, chain) for name, chain in PRESETS.items()}, "lopsided": ((2, 3, 2, 4, 6), LOPSIDED)}


def random_weights(model, random):
    """Weights that keep the values of the order of one, and biases that are not zero."""
    return [random.normal(scale=w.shape[-1] ** -0.5 / 2, size=w.shape) for w in model.get_weights()]


@pytest.mark.parametrize("case", CASES)
def test_layer_operation_and_numpy_agree(case):
    latent_shape, chain = CASES[case]
    random = np.random.default_rng(0)
    upsampler = build_upsampler(latent_shape[1:], chain)
    weights = random_weights(upsampler, random)
    upsampler.set_weights(weights)
    latent = random.normal(size=latent_shape).astype(np.float32)
    by_layer, by_operation = (np.asarray(model(latent)) for model in (upsampler, build_twin(upsampler)))

    expected = latent.astype(np.float64)
    for number, (stage, report) in enumerate(zip(chain, describe(latent_shape, chain).stages, strict=True)):
        kernel, bias = weights[2 * number : 2 * number + 2]
        sizes = report.output_shape[1:4]
        expected = as_tensorflow(expected, kernel, stage.strides, sizes, stage.padding, stage.dilation_rate) + bias
        if number < len(chain) - 1:
            expected = np.maximum(expected, 0)
    assert by_layer.shape == by_operation.shape == expected.shape
    np.testing.assert_allclose(by_layer, expected, atol=1e-5)
    np.testing.assert_allclose(by_operation, expected, atol=1e-5)


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
def test_both_reload_in_safe_mode_with_their_numbers(tmp_path, free):
    upsampler = build_upsampler((None, None, None, 6) if free else (3, 2, 4, 6), LOPSIDED, activation="leaky_relu")
    upsampler.set_weights(random_weights(upsampler, np.random.default_rng(0)))
    latent = np.random.default_rng(1).normal(size=(2, 3, 2, 4, 6)).astype(np.float32)
    for model in (upsampler, build_twin(upsampler)):
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
        np.testing.assert_array_equal(np.asarray(again(latent)), np.asarray(upsampler(latent)))
        assert again.output_shape == upsampler.output_shape


def test_the_twin_has_no_weights_of_its_own():
    upsampler = build_upsampler((2, 2, 2, 6), LOPSIDED)
    twin = build_twin(upsampler)
    assert [id(w) for w in twin.weights] == [id(w) for w in upsampler.weights]
    twin.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    before = upsampler.get_weights()
    twin.fit(np.ones((1, 2, 2, 2, 6)), np.ones((1, *twin.output_shape[1:])), verbose=0)
    assert all((a != b).any() for a, b in zip(before[-2:], upsampler.get_weights()[-2:], strict=True))


@pytest.mark.parametrize("kernel", [(4, 4, 4), (3, 4, 6)])
def test_a_stage_with_weights_from_pytorch_or_caffe_gives_their_numbers(kernel):
    stage = Stage(3, kernel, (1 if kernel[0] == 3 else 2, 2, 2))
    report = describe((1, 3, 4, 5, 2), [stage]).stages[0]
    assert report.torch.equivalent
    random = np.random.default_rng(0)
    theirs, bias = random.normal(size=(2, 3, *kernel)), random.normal(size=3)
    for latent in (delta((1, 3, 4, 5, 2), (0, 1, 2, 3, 1)), random.normal(size=(1, 3, 4, 5, 2))):
        model = build_upsampler((3, 4, 5, 2), [stage])
        model.set_weights([theirs.transpose(2, 3, 4, 1, 0), bias])
        made = np.asarray(model(latent.astype(np.float32)))
        reference = as_torch(
            latent, np.einsum("iodhw->dhwoi", theirs), stage.strides, report.torch.pad, report.torch.output_padding
        )
        np.testing.assert_allclose(made, reference + bias, atol=1e-5)
    np.testing.assert_allclose(  # the delta's image is their kernel itself, not flipped, where the pad says
        build_image_of_delta(stage, theirs, report.torch.pad), theirs[1], atol=1e-6
    )


def delta(shape, place):
    x = np.zeros(shape)
    x[place] = 1
    return x


def build_image_of_delta(stage, theirs, pad):
    model = build_upsampler((5, 5, 5, 2), [stage])
    model.set_weights([theirs.transpose(2, 3, 4, 1, 0), np.zeros(3)])
    image = np.asarray(model(delta((1, 5, 5, 5, 2), (0, 2, 2, 2, 1)).astype(np.float32)))[0]
    start = [2 * s - p for s, p in zip(stage.strides, pad, strict=True)]
    window = tuple(slice(a, a + k) for a, k in zip(start, stage.kernel_size, strict=True))
    return np.moveaxis(image[window], -1, 0)


def test_verification_runs_every_stage_both_ways():
    verified = compare_implementations((1, 3, 2, 4, 6), LOPSIDED)
    assert verified.shapes
    assert verified.max_abs_difference <= 1e-5
