"""Memory that a piece of work takes beyond what its process already holds."""

import ctypes
from contextlib import suppress
from pathlib import Path

import psutil
import tensorflow as tf

from tasks.sharding.restore import peak_rss


class MemoryGrowth:
    """Measures memory from its creation: of the GPU that takes most, or of the host where there is none."""

    def __init__(self) -> None:
        self._info = tf.config.experimental.get_memory_info
        self._gpus = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("GPU")]
        for gpu in self._gpus:
            tf.config.experimental.reset_memory_stats(gpu)
        self._held_by_gpus = [self._info(gpu)["current"] for gpu in self._gpus]
        with suppress(OSError, AttributeError):
            # GNU: freed memory goes back to the system; else work that reuses it would not be measured.
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            # Linux: resets the peak. Elsewhere it may be older, and the growth is overstated.
            Path("/proc/self/clear_refs").write_text("5")
        self._held = psutil.Process().memory_info().rss

    @property
    def bytes(self) -> int:
        """Peak memory beyond that at the start."""
        if self._gpus:
            peaks = (self._info(gpu)["peak"] for gpu in self._gpus)
            return max(int(peak - held) for peak, held in zip(peaks, self._held_by_gpus, strict=True))
        return max(0, peak_rss() - self._held)
