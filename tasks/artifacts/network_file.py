"""A saved network without TensorFlow: the bytes of its file, their digest, its cost and its card."""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from configs.errors import ReadError, VoxliftError
from configs.precision import Precision
from models.network.cost import Cost
from models.network.graph import read_graph
from models.network.receptive_field import receptive_field
from tasks.artifacts.model_card import ModelCard, read_card

FLIPS = 8  # mirror images along three axes
MAX_REASON = 300  # characters of another library's message, which may quote the file
MAX_COMPRESSION = 4  # of weights: numbers that were trained do not become so small
MAX_CONFIGURATION = 1 << 26  # bytes, decompressed: a network of a thousand layers takes one hundredth of it


class NotFiniteWeightsError(ReadError):
    """A model with weights that are NaN or infinite."""


@dataclass(frozen=True)
class NetworkFile:
    """A `.keras` file that was read once, so that the workers load exactly what the plan was made for.

    Args:
        name: The file's name, for messages.
        content: Its bytes.
        cost: Of the network, with its receptive field.
        card: None where the file carries none.
        precision: In which its layers compute.
    """

    name: str
    content: bytes = field(repr=False)
    cost: Cost = field(repr=False)
    card: ModelCard | None = field(default=None, repr=False)
    precision: Precision = "float32"

    @property
    def needs_acquisition(self) -> bool:
        """True if its input is made consistent with the coarse volume, by what is known of the acquisition."""
        return self.card is not None and self.card.input == "consistent"

    @property
    def flips(self) -> int:
        """Mirror images that are restored and averaged: 8, or 1 for the volume alone."""
        return self.cost.passes

    @property
    def arithmetic(self) -> tuple[int, Precision]:
        """Mirror images and precision, as arguments of a restorer."""
        return self.flips, self.precision

    def flipped(self) -> "NetworkFile":
        """The same network, to restore and average the eight mirror images of a volume."""
        return replace(self, cost=Cost(self.cost.graph, self.cost.field.mirrored(), FLIPS))

    def replaced(self, other: "NetworkFile") -> "NetworkFile":
        """Another network, to restore by as many mirror images and in the same precision."""
        return replace(other.flipped() if self.flips > 1 else other, precision=self.precision)

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()


def read_network(path: Path) -> NetworkFile:
    """Read a `.keras` file.

    Raises:
        InputError: The file does not exist or is not a Keras model.
        ShapeError: The network cannot be sharded: it has a layer without a finite receptive field.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _no_model(path.name, error) from error
    return parse_network(path.name, content)


def parse_network(name: str, content: bytes) -> NetworkFile:
    """Read a network from the bytes of a `.keras` file.

    Args:
        name: For messages, and for the file that workers load.
        content: Its bytes.

    Raises:
        InputError: They are no Keras model.
        NotFiniteWeightsError: A weight is NaN or infinite.
        ShapeError: The network cannot be sharded: it has a layer without a finite receptive field.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = archive.getinfo("config.json").file_size
            if size > MAX_CONFIGURATION:
                raise ReadError(
                    f"the model {name}", f"its configuration decompresses to {size} bytes", "Use another model."
                )
            architecture = json.loads(archive.read("config.json"))
            card = read_card(archive, name)
            _require_finite(archive, name)
        graph = read_graph(architecture)
        return NetworkFile(name, content, Cost(graph, receptive_field(graph)), card)
    except VoxliftError:
        raise
    except Exception as error:  # a file that is no model may hold anything
        raise _no_model(name, error) from error


def reproducible(content: bytes) -> bytes:
    """Return a `.keras` file without what differs between two savings of one network: time stamps and memory addresses.

    Keras numbers objects that layers share by their address. They are numbered in their order instead.
    """
    numbers: dict[int, int] = {}

    def renumbered(given: dict[str, Any]) -> dict[str, Any]:
        if (address := given.get("shared_object_id")) is not None:
            given["shared_object_id"] = numbers.setdefault(address, len(numbers) + 1)
        return given

    saved = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(saved, "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name == "config.json":
                data = json.dumps(json.loads(data, object_hook=renumbered)).encode()
            elif name == "metadata.json":
                data = json.dumps(json.loads(data) | {"date_saved": "1980-01-01@00:00:00"}).encode()
            copy.writestr(zipfile.ZipInfo(name), data)  # whose date is fixed
    return saved.getvalue()


def _require_finite(archive: zipfile.ZipFile, name: str) -> None:
    """Check the weights of a model."""
    content, found = archive.read("model.weights.h5"), []
    with h5py.File(io.BytesIO(content), "r") as stored:
        stored.visititems(lambda _, item: found.append(item))
        weights = [item for item in found if isinstance(item, h5py.Dataset) and item.dtype.kind == "f"]
        if sum(weight.nbytes for weight in weights) > MAX_COMPRESSION * len(content):
            raise ValueError("it declares more weights than it holds")
        bad = sum(weight.size - int(np.count_nonzero(np.isfinite(weight[()]))) for weight in weights)
    if bad:
        count = sum(weight.size for weight in weights)
        raise NotFiniteWeightsError(
            f"the model {name}", f"{bad} of its {count} weights are NaN or infinite", "Train it again, or use another."
        )


def _no_model(name: str, error: Exception) -> ReadError:
    reason = f"it is not a Keras model ({' '.join(str(error).split())[:MAX_REASON]})"
    return ReadError(f"the model {name}", reason, "Name a .keras file saved by voxlift.")
