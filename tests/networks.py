"""Small networks of the restorer's kind, for tests of what is done with any network."""

import keras

ROUTES = {
    "four stages": [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)],
    "three stages": [(2, 4, 4), (2, 2, 2), (2, 2, 2)],
}


def small_restorer(route="four stages", filters=2, convolutions=0, seed=1):
    """An encoder and an upsampler with both kinds of skips; smooth, no unit dead, every weight random."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((None, None, None, 1), name="resampled")
    tensor, encoded = inputs, []
    for stride in ROUTES[route]:
        encoded.append(tensor)
        tensor = convolution(filters, tuple(max(3, s) for s in stride), strides=stride)(tensor)
        for _ in range(convolutions):
            tensor = convolution(filters)(tensor)
    for level, (stride, skip) in enumerate(zip(reversed(ROUTES[route]), reversed(encoded), strict=True)):
        kernel = tuple(3 if s == 1 else 2 * s for s in stride)
        tensor = convolution(filters, kernel, keras.layers.Conv3DTranspose, strides=stride)(tensor)
        if level % 2 and skip is not inputs:
            tensor = keras.layers.Add()([tensor, skip])
        else:
            tensor = keras.layers.Concatenate()([tensor, skip])
    detail = keras.layers.Conv3D(1, 1)(tensor)
    return keras.Model(inputs, keras.layers.Add(name="restored")([inputs, detail]), name="small_restorer")


def convolution(filters, kernel_size=3, kind=keras.layers.Conv3D, **options):
    """A convolution that keeps the size of its values, so that the far end of a receptive field does not fade away."""
    return kind(
        filters,
        kernel_size,
        padding=options.pop("padding", "same"),
        activation="softplus",
        kernel_initializer=keras.initializers.HeNormal(),
        bias_initializer=keras.initializers.RandomNormal(stddev=0.1),
        **options,
    )
