"""Training patches: each drawn from (seed, index) alone, so that a run can be repeated and taken up anywhere."""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from configs.schema import RunConfig
from tasks.scoring.metrics import foreground_mask
from tasks.training.blocks import Block, BlockSource, TrainingVolume, block_shape, coarse_steps

Array = NDArray[np.float32]

LANES = 4  # blocks that patches come from in turn, so that a batch shows different anatomy
PATCHES = 16  # patches per block
TRIES = 8  # places looked at for one that shows enough of a head
MIN_FOREGROUND_SHARE = 0.25  # share of the foreground in a patch


class PatchSource:
    """Draws patches; keeps the blocks that they are cut from as long as they are in turn. Safe in several threads.

    Args:
        volumes: Volumes to learn from; may be empty where the configuration draws from none.
        config: The run.
    """

    def __init__(self, volumes: Sequence[TrainingVolume], config: RunConfig) -> None:
        self._patch = config.training.patch
        self._seed = config.training.seed
        self._steps = coarse_steps(config.degradation)
        self._swaps = config.degradation.height == config.degradation.width and self._patch[1] == self._patch[2]
        shape = block_shape(self._patch, config.degradation)
        mixture, augmentation = config.data.mixture, config.augmentation
        self._source = BlockSource(volumes, mixture, config.degradation, augmentation, shape, self._seed)
        self._blocks: OrderedDict[int, tuple[Lock, list[Block]]] = OrderedDict()
        self._lock = Lock()

    def draw(self, index: int) -> tuple[Array, Array, np.float32]:
        """Draw one patch: a place inside a block, where coarse voxels begin, a change of axes and flips.

        Args:
            index: Number of the patch in the run; the same (seed, index) is the same patch.

        Returns:
            The network's input and its target, float32, `(depth, height, width, 1)`, and the share of foreground.
        """
        block = self._block(block_number(index))
        random = np.random.default_rng((self._seed, index, 1))
        steps = self._steps
        swap = self._swaps and random.random() < 0.5
        for _ in range(TRIES):
            start = [
                int(random.integers((whole - size) // step + 1)) * step
                for whole, size, step in zip(block.fine.shape, self._patch, steps, strict=True)
            ]
            window = tuple(slice(first, first + size) for first, size in zip(start, self._patch, strict=True))
            share = foreground_mask(block.fine[window]).mean(dtype=np.float32)
            if share >= MIN_FOREGROUND_SHARE:
                break
        flips = tuple(slice(None, None, int(step)) for step in random.choice((-1, 1), 3))

        def taken(volume: Array) -> Array:
            piece = volume[window][flips]
            return np.ascontiguousarray(piece.transpose(0, 2, 1) if swap else piece)[..., np.newaxis]

        return taken(block.resampled), taken(block.fine), share

    def _block(self, number: int) -> Block:
        """The block of that number, drawn once however many threads ask for it."""
        with self._lock:
            drawing, drawn = self._blocks.setdefault(number, (Lock(), []))
            while len(self._blocks) > 2 * LANES:
                self._blocks.popitem(last=False)
        with drawing:
            if not drawn:
                drawn.append(self._source.draw(number))
        return drawn[0]


def block_number(index: int) -> int:
    """The block that a patch is cut from. Lanes change their blocks one after another, so that no step waits for all.

    >>> [block_number(index) for index in (0, 1, 2, 3, 4, 5)]
    [0, 1, 2, 3, 0, 1]
    >>> len({block_number(index) for index in range(16 * 100)})
    103
    """
    lane = index % LANES
    turn = (index // LANES + lane * PATCHES // LANES) // PATCHES
    return turn * LANES + lane
