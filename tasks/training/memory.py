"""Memory of a training, estimated from the layers of the network alone."""

from configs.axes import NetworkShape
from models.network.cost import Cost
from tasks.sharding.plan import MIB

# Measured on two CPU cores: what a training takes beyond its idle process, over patches of 16x64x64 to 32x96x96, one
# to eight of them, skips concatenated and added, none to two convolutions a level: estimated 0.84 to 1.13 of it.
KEPT_FACTOR = 1.8  # of the tensors kept for backpropagation: gradients, and copies in the layout of the convolutions
WEIGHT_BYTES = 40  # per weight: gradients, also clipped and reduced, and copies rearranged by the convolutions
FIXED_BYTES = 30 * MIB  # the traced graph


def replica_bytes(cost: Cost, patch: NetworkShape, batch: int) -> int:
    """Estimate the memory of a model replica during a step, beyond the idle process, bytes.

    Args:
        cost: Of the network.
        patch: Voxels of a patch along depth, height and width.
        batch: Patches of a step on this replica.
    """
    return int(KEPT_FACTOR * batch * cost.kept_bytes(patch)) + WEIGHT_BYTES * cost.parameters + FIXED_BYTES
