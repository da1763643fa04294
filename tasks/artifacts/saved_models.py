"""Keras models on disk: saved reproducibly, and loaded in safe mode only, so that no foreign code runs."""

from pathlib import Path

import keras

from configs.errors import InputError
from tasks.artifacts.model_card import ModelCard, add_card
from tasks.artifacts.network_file import reproducible
from tasks.files.atomic import replacing


def save_model(model: keras.Model, card: ModelCard, path: Path) -> None:
    """Save a model with its card as a `.keras` file; equal models and cards give equal files, byte for byte."""
    with replacing(path) as partial:
        model.save(partial)
        add_card(partial, card)
        partial.write_bytes(reproducible(partial.read_bytes()))


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
