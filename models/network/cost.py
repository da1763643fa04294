"""Cost of a network on a volume, from its layers alone: memory to restore and to train, and arithmetic."""

from dataclasses import dataclass
from functools import cached_property
from math import prod

from configs.axes import NetworkShape
from models.network.graph import Graph, Node
from models.network.receptive_field import ALONG_AXIS, POINTWISE, ReceptiveField
from models.network.streaming import Step

VALUE_BYTES = 4  # float32
CONVOLUTIONS = ("Conv3D", "Conv3DTranspose")
LINEAR = ("linear", None)
IN_PLACE = (POINTWISE | ALONG_AXIS) - {"InputLayer", "Concatenate", "Dense"}

# Measured on two CPU cores: what a training takes beyond its idle process, over patches of 16x64x64 to 32x96x96, one
# to eight of them, skips concatenated and added, none to two convolutions a level: estimated 0.84 to 1.13 of it.
KEPT_FACTOR = 1.8  # of the tensors kept for backpropagation: gradients, and copies in the layout of the convolutions
WEIGHT_BYTES = 40  # per weight: gradients, also clipped and reduced, and copies rearranged by the convolutions
TRACED_GRAPH_BYTES = 30 << 20


@dataclass(frozen=True)
class Cost:
    """Memory and arithmetic of a network.

    Args:
        graph: Its layers.
        field: Its receptive field, which knows the size of every tensor.
        passes: Passes over each volume, one after another.
    """

    graph: Graph
    field: ReceptiveField
    passes: int = 1

    def peak_bytes(self, shape: NetworkShape) -> int:
        """Find the most bytes that tensors hold at one time.

        Layers compute in the order of the graph, a tensor is freed after its last reader, input and output stay, and a
        pointwise layer overwrites an input that no other layer reads.

        Args:
            shape: Voxels of the input along depth, height and width, a multiple of the total stride.
        """
        sizes = [
            self._voxels(node, shape) * layer.channels * VALUE_BYTES for node, layer in enumerate(self.graph.nodes)
        ]
        alive = peak = 0
        for node, freed in enumerate(self._last_read):
            freed_bytes = sum(sizes[source] for source in freed)
            alive += sizes[node]
            peak = max(peak, alive - (freed_bytes if self.graph.nodes[node].kind in IN_PLACE else 0))
            alive -= freed_bytes
        return peak

    def step_bytes(self, step: Step, axis: int, shape: NetworkShape) -> int:
        """Find the most bytes that tensors hold at one time in a step of a stream.

        What it is given stays until it ends; a layer also holds what it reads where that is joined or padded.

        Args:
            step: Its layout.
            axis: The streamed one: 0 depth, 1 height, 2 width.
            shape: Voxels of the input; those along the streamed axis do not matter.
        """
        plane = [
            self._plane_voxels(node, axis, shape) * layer.channels * VALUE_BYTES
            for node, layer in enumerate(self.graph.nodes)
        ]
        alive = sum(plane[node] * count for node, count in step.pieces)
        peak = 0
        for node, (layer, work, freed) in enumerate(zip(self.graph.nodes, step.layers, self._last_read, strict=True)):
            if not work.planes:
                continue
            read = sum(plane[source] * n for source, n in zip(layer.sources, work.read_planes, strict=False))
            made = plane[node] * work.planes
            peak = max(peak, alive + made + (0 if layer.kind in IN_PLACE else read))
            alive += made
            if work.kept is not None and not work.keeps_all:
                alive += plane[node] * (work.kept[1] - work.kept[0])
            alive -= sum(plane[each] * step.layers[each].planes for each in freed if not step.layers[each].keeps_all)
        return peak

    def given_bytes(self, step: Step, axis: int, shape: NetworkShape) -> int:
        """Count the bytes of what a step is given by earlier ones; arguments as of `step_bytes`."""
        return sum(
            planes * self._plane_voxels(node, axis, shape) * self.graph.nodes[node].channels * VALUE_BYTES
            for node, planes in step.pieces
        )

    def _plane_voxels(self, node: int, axis: int, shape: NetworkShape) -> int:
        sides = [
            int(size / field.sizes[node].step) - field.sizes[node].loss
            for size, field in zip(shape, self.field.axes, strict=True)
        ]
        return prod(sides[:axis] + sides[axis + 1 :])

    def kept_bytes(self, shape: NetworkShape) -> int:
        """Count the bytes of tensors that training keeps for backpropagation.

        These are the output of every layer and, where a layer has an activation, also its input.

        Args:
            shape: Voxels of the input along depth, height and width, a multiple of the total stride.
        """
        return VALUE_BYTES * sum(
            self._voxels(node, shape) * layer.channels * (1 if layer.config.get("activation") in LINEAR else 2)
            for node, layer in enumerate(self.graph.nodes)
        )

    def replica_bytes(self, patch: NetworkShape, batch: int) -> int:
        """Estimate the memory of a model replica in a training step of `batch` patches, beyond the idle process."""
        return int(KEPT_FACTOR * batch * self.kept_bytes(patch)) + WEIGHT_BYTES * self.parameters + TRACED_GRAPH_BYTES

    @cached_property
    def parameters(self) -> int:
        """Weights and biases of the convolutions."""
        return sum(
            layer.channels * (self._inputs_per_output(layer) + bool(layer.config.get("use_bias", True)))
            for layer in self.graph.nodes
            if layer.kind in CONVOLUTIONS
        )

    def multiply_adds(self, shape: NetworkShape) -> int:
        """Count the multiply-adds of the convolutions for an input of `shape` voxels, over all passes."""
        total = 0
        for node, layer in enumerate(self.graph.nodes):
            if layer.kind in CONVOLUTIONS:
                # Every tap is applied at every output voxel of a convolution, every input voxel of a transposed one.
                voxels = self._voxels(node if layer.kind == "Conv3D" else layer.sources[0], shape)
                total += voxels * self._inputs_per_output(layer) * layer.channels
        return self.passes * total

    def step_multiply_adds(self, step: Step, axis: int, shape: NetworkShape) -> int:
        """Count the multiply-adds of the convolutions in a step of a stream; arguments as of `step_bytes`."""
        total = 0
        for node, (layer, work) in enumerate(zip(self.graph.nodes, step.layers, strict=True)):
            if layer.kind in CONVOLUTIONS and work.planes and not work.skipped:
                plain = layer.kind == "Conv3D"
                planes = work.planes if plain else work.read_planes[0]
                voxels = planes * self._plane_voxels(node if plain else layer.sources[0], axis, shape)
                total += voxels * self._inputs_per_output(layer) * layer.channels
        return total

    def _inputs_per_output(self, convolution: Node) -> int:
        channels: int = self.graph.nodes[convolution.sources[0]].channels // convolution.config.get("groups", 1)
        taps: int = prod(convolution.config["kernel_size"])
        return channels * taps

    def _voxels(self, node: int, shape: NetworkShape) -> int:
        return prod(
            int(size / axis.sizes[node].step) - axis.sizes[node].loss
            for size, axis in zip(shape, self.field.axes, strict=True)
        )

    @cached_property
    def _last_read(self) -> list[list[int]]:
        """For each node, the nodes whose tensors are not read after it, except the network's input and output."""
        last = {source: node for node, layer in enumerate(self.graph.nodes) for source in layer.sources}
        kept = {self.graph.output, self.field.axes[0].entry}
        return [
            [source for source, reader in last.items() if reader == node and source not in kept]
            for node in range(len(self.graph.nodes))
        ]
