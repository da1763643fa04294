"""A saved network as the driver holds it: bytes, their digest, and what its layers cost, without loading TensorFlow."""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import InputError, ReadError
from models.network.cost import Cost
from models.network.graph import read_graph
from models.network.receptive_field import receptive_field
from tasks.artifacts.model_card import ModelCard, read_card


@dataclass(frozen=True)
class NetworkFile:
    """A `.keras` file that was read once: what was planned with is what the workers load.

    Args:
        name: The file's name, for messages.
        content: Its bytes.
        cost: What the network costs, and its receptive field.
        card: What it was trained for; None where the file carries no card.
    """

    name: str
    content: bytes = field(repr=False)
    cost: Cost = field(repr=False)
    card: ModelCard | None = field(default=None, repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()


def read_network(path: Path) -> NetworkFile:
    """Read a `.keras` file.

    Raises:
        InputError: The file is missing or no Keras model.
        ShapeError: The network cannot be sharded: it has a layer without a finite receptive field.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _no_model(path.name, error) from error
    return parse_network(path.name, content)


def parse_network(name: str, content: bytes) -> NetworkFile:
    """Use the bytes of a `.keras` file for a network.

    Args:
        name: For messages, and for the file that workers load.
        content: Its bytes.

    Raises:
        InputError: They are no Keras model.
        ShapeError: The network cannot be sharded: it has a layer without a finite receptive field.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            architecture = json.loads(archive.read("config.json"))
            card = read_card(archive, name)
    except InputError:
        raise
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _no_model(name, error) from error
    graph = read_graph(architecture)
    return NetworkFile(name, content, Cost(graph, receptive_field(graph)), card)


def _no_model(name: str, error: Exception) -> ReadError:
    reason = f"it is not a Keras model ({' '.join(str(error).split())})"
    return ReadError(f"the model {name}", reason, "Name a .keras file saved by voxlift.")
