"""Memory that a piece of work takes beyond what its process holds already."""

import ctypes
from contextlib import suppress
from pathlib import Path

import psutil
import tensorflow as tf

from tasks.sharding.restore import peak_rss


class MemoryGrowth:
    """Watches memory from its making on: that of the GPU that takes most where there are GPUs, else the host's."""

    def __init__(self) -> None:
        self._info = tf.config.experimental.get_memory_info
        self._gpus = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("GPU")]
        for gpu in self._gpus:
            tf.config.experimental.reset_memory_stats(gpu)
        self._held_by_gpus = [self._info(gpu)["current"] for gpu in self._gpus]
        with suppress(OSError, AttributeError):
            # GNU: what was freed goes back to the system, else work would grow into it unseen.
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            # Linux: the peak begins anew. Elsewhere it may be older than this, and the growth is overstated.
            Path("/proc/self/clear_refs").write_text("5")
        self._held = psutil.Process().memory_info().rss

    @property
    def bytes(self) -> int:
        """The most that was held at one time beyond what was held at the start."""
        if self._gpus:
            peaks = (self._info(gpu)["peak"] for gpu in self._gpus)
            return max(int(peak - held) for peak, held in zip(peaks, self._held_by_gpus, strict=True))
        return max(0, peak_rss() - self._held)
