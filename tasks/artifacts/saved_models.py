"""Loading of Keras models from disk, in safe mode only, so that no foreign code runs."""

from pathlib import Path

import keras

from configs.errors import InputError


def load_model(path: Path) -> keras.Model:
    """Load a `.keras` file for inference.

    Raises:
        InputError: The file does not exist or is not a Keras model that loads in safe mode.
    """
    if not path.is_file():
        raise InputError(f"Cannot load the model {path}: there is no such file.", "Name a .keras file.")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise InputError(
            f"Cannot load the model {path.name}: {' '.join(str(error).split())[:300]}",
            "Name a .keras file saved by voxlift.",
        ) from error
