"""A stand-in for the restorer of a worker, without TensorFlow: a network that changes nothing and loads in no time."""

import numpy as np

from tasks.imaging.resample import resample_window
from tasks.sharding.restore import RestoredCore, label_core


class LightRestorer:
    """Resamples, fails on bright volumes, and makes dark ones NaN in part."""

    def __init__(self, name, content, threads, flips=1, precision="float32"):
        assert (name, threads, flips) == ("small.keras", 1, 1)
        self.psnr = None if precision == "float32" else 61.5
        assert content[:2] == b"PK"

    def __call__(self, volume, shard):
        # Mapped from shared memory: an array of the worker's own could be written to.
        assert not volume.voxels.flags.writeable
        if volume.labels:
            return label_core(volume, shard)
        if volume.voxels.max() > 1e6:
            raise RuntimeError("too bright")
        window = resample_window(volume.voxels, volume.target_shape, shard.read)
        if volume.voxels.min() < -1e6:  # as a network does that overflows
            window[shard.crop][0, 0, 0] = np.nan
        return RestoredCore(window[shard.crop], 0.1, 0.2, 100.0, precision_psnr=self.psnr).stored(volume, shard)
