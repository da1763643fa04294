"""A network's architecture as plain data: the layers of a serialised Keras model, in the order in which they compute.

Reads what `model.get_config()` returns or what `config.json` inside a `.keras` file holds, so that a process can plan
with a network that it never loads. Models nested in the model are expanded in place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.errors import ShapeError

MAX_SHOWN = 60
NESTED = frozenset({"Functional", "Sequential", "Model"})
Tensor = tuple[str, int, int]  # layer, number of its call, number of the output


def shown(name: str) -> str:
    """The name of a layer or a network for a message: of a long one its end."""
    return name if len(name) <= MAX_SHOWN else f"…{name[-MAX_SHOWN:]}"


@dataclass(frozen=True)
class Slot:
    """The place of a tensor among the arguments of a call.

    Args:
        index: Of the tensor among the sources of the node.
    """

    index: int


@dataclass(frozen=True)
class Node:
    """One call of one layer.

    Args:
        name: The layer's name, with those of the models around it: "upsampler/stage_1".
        kind: The Keras class.
        config: The layer's own configuration.
        sources: The nodes that it reads, by their index in the graph.
        channels: Channels of the tensor that it returns.
        constants: Arguments of the call other than tensors, such as the 2.0 of `2.0 * tensor`.
        arguments: The positional arguments of the call, a `Slot` for each tensor.
        options: Its keyword arguments.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    sources: tuple[int, ...]
    channels: int
    constants: tuple[Any, ...] = ()
    arguments: tuple[Any, ...] = (Slot(0),)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """The nodes of a network with one input and one output, each after those that it reads."""

    nodes: tuple[Node, ...]
    output: int


@dataclass(frozen=True)
class _Call:
    """A call of a layer as the configuration has it; by default with one tensor, as in a sequential model."""

    tensors: tuple[Tensor, ...] = ()
    constants: tuple[Any, ...] = ()
    arguments: tuple[Any, ...] = (Slot(0),)
    options: Mapping[str, Any] = field(default_factory=dict)


class _Reader:
    """Collects nodes while it walks a model and the models inside it."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def model(self, kind: str, config: Mapping[str, Any], inputs: Sequence[int] | None, prefix: str) -> list[int]:
        """Add the nodes of a model; returns those of its outputs. `inputs` is None for the outermost."""
        if "layers" not in config:
            raise ShapeError(
                f"Cannot read the layers of {shown(prefix.rstrip('/') or config.get('name', 'the network'))}:"
                f" a {shown(kind)} that is no functional or sequential model keeps no list of layers.",
                "Build the network with keras.Model(inputs, outputs).",
            )
        if kind != "Sequential":
            return self._functional(config, inputs, prefix)
        current = list(inputs or ())
        for layer in config["layers"]:
            if layer["class_name"] != "InputLayer" or inputs is None:
                current = self._call(layer, current, _Call(), prefix)
        return current

    def _functional(self, config: Mapping[str, Any], inputs: Sequence[int] | None, prefix: str) -> list[int]:
        tensors = {} if inputs is None else dict(zip(_references(config["input_layers"]), inputs, strict=True))
        waiting = [
            (layer, index, _read_call(call))
            for layer in config["layers"]
            for index, call in enumerate(layer.get("inbound_nodes") or [{"args": [], "kwargs": {}}])
            if (layer["name"], index, 0) not in tensors
        ]
        while waiting:
            later = []
            for layer, index, call in waiting:
                if not tensors.keys() >= set(call.tensors):
                    later.append((layer, index, call))
                    continue
                outputs = self._call(layer, [tensors[source] for source in call.tensors], call, prefix)
                tensors |= {(layer["name"], index, place): node for place, node in enumerate(outputs)}
            if len(later) == len(waiting):
                raise ShapeError(
                    f"Cannot order the layers of {shown(config['name'])}: {shown(later[0][0]['name'])} reads itself."
                )
            waiting = later
        return [tensors[output] for output in _references(config["output_layers"])]

    def _call(self, layer: Mapping[str, Any], sources: Sequence[int], call: "_Call", prefix: str) -> list[int]:
        config, kind = layer["config"], layer["class_name"]
        name = layer.get("name") or config.get("name", kind)
        if kind in NESTED or "layers" in config:
            return self.model(kind, config, sources, f"{prefix}{name}/")
        channels = _channels(kind, config, [self.nodes[source].channels for source in sources])
        made = Node(prefix + name, kind, config, tuple(sources), channels, call.constants, call.arguments, call.options)
        self.nodes.append(made)
        return [len(self.nodes) - 1]


def read_graph(architecture: Mapping[str, Any]) -> Graph:
    """Read the layer graph of a serialised model.

    Args:
        architecture: `model.get_config()`, or the parsed `config.json` of a `.keras` file.

    Returns:
        The graph, nested models expanded.

    Raises:
        ShapeError: The model is no functional or sequential one, or has more than one input or output.
    """
    config = architecture.get("config", architecture)
    kind = architecture.get("class_name") or ("Functional" if "input_layers" in config else "Sequential")
    reader = _Reader()
    outputs = reader.model(kind, config, None, "")
    entries = [node.name for node in reader.nodes if node.kind == "InputLayer"]
    if len(entries) != 1 or len(outputs) != 1:
        raise ShapeError(
            f"Cannot shard {shown(config.get('name', 'the network'))}: a network has one input and one output volume,"
            f" this one has {len(entries)} and {len(outputs)}."
        )
    return Graph(tuple(reader.nodes), outputs[0])


def _references(spec: Sequence[Any]) -> list[Tensor]:
    """Return the tensors that `input_layers` or `output_layers` name: a single one is not wrapped in a list."""
    triples = [spec] if spec and isinstance(spec[0], str) else spec
    return [(name, call, place) for name, call, place in triples]


def _read_call(call: Mapping[str, Any]) -> _Call:
    """Read a call: its tensors, its constants, and its arguments with the tensors replaced by slots."""
    tensors: list[Tensor] = []
    constants: list[Any] = []

    def read(value: Any) -> Any:  # noqa: ANN401 - parsed JSON
        if isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
            layer, index, place = value["config"]["keras_history"]
            tensors.append((layer, index, place))
            return Slot(len(tensors) - 1)
        if isinstance(value, list | tuple):
            return [read(item) for item in value]
        if value is not None:
            constants.append(value)
        return value

    arguments = tuple(read(value) for value in call["args"])
    options = {key: read(value) for key, value in call["kwargs"].items() if key != "mask"}
    return _Call(tuple(tensors), tuple(constants), arguments, options)


def _channels(kind: str, config: Mapping[str, Any], sources: Sequence[int]) -> int:
    if kind == "InputLayer":
        return int(config["batch_shape"][-1] or 1)
    if kind == "Concatenate":
        return sum(sources)
    return int(config.get("filters") or config.get("units") or max(sources))
