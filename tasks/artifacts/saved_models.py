"""Models from disk: Keras files only, in safe mode, so that no code from outside runs."""

from pathlib import Path

import keras

from configs.errors import InputError


def load_model(path: Path) -> keras.Model:
    """Load a `.keras` file for inference.

    Raises:
        InputError: The file is missing or no Keras model that safe mode admits.
    """
    if not path.is_file():
        raise InputError(f"Cannot load the model {path}: there is no such file.", "Name a .keras file.")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise InputError(
            f"Cannot load the model {path.name}: {' '.join(str(error).split())[:300]} "
            "Name a .keras file saved by voxlift."
        ) from error
