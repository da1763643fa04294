"""Serving of a logged restorer through MLflow: this file goes into the model's folder and needs Keras alone.

MLflow runs it by name when it loads the model as a pyfunc or serves it; nothing is pickled. Refusals name axes and
types and never a voxel.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

# As `configs.axes` names them; this file stands alone in the folder of a model.
TENSOR_AXES = ("batch", "depth", "height", "width", "channels")


class ServedRestorer:
    """Answers tensors `(batch, depth, height, width, 1)`, float32, in their own shape.

    Args:
        network: A loaded Keras model.
    """

    def __init__(self, network: Any) -> None:  # noqa: ANN401 - Keras has no types
        self._network = network

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> np.ndarray:  # noqa: ANN401, ARG002 - MLflow's
        """Restore a batch of volumes.

        Raises:
            ValueError: The tensor does not fit: the message says which axis, what is wanted and what was received.
        """
        tensor = np.asarray(data)
        wanted = f"a float32 tensor with the axes {', '.join(TENSOR_AXES)}"
        if tensor.dtype != np.float32 or tensor.ndim != len(TENSOR_AXES):
            raise ValueError(
                f"Cannot restore: {wanted} is needed, received {tensor.dtype} of shape {tuple(tensor.shape)}."
            )
        if 0 in tensor.shape or tensor.shape[-1] != 1:
            raise ValueError(
                f"Cannot restore: one channel and at least one volume are needed, received {tuple(tensor.shape)}."
            )
        try:
            return np.asarray(self._network.predict_on_batch(tensor))
        except Exception:  # noqa: BLE001 - what Keras says may hold voxels
            raise ValueError(
                f"Cannot restore a tensor of shape {tuple(tensor.shape)}: depth, height and width must be multiples of "
                "the network's total stride."
            ) from None


def _load_pyfunc(path: str) -> ServedRestorer:
    """Load the model for MLflow, which calls this by its name."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras  # noqa: PLC0415 - reads the environment that is set above

    if "mlflow.pyfunc.scoring_server.app" in sys.modules:
        # MLflow's own refusals print the array that was sent: in a process that only serves, arrays hide their voxels.
        np.set_printoptions(threshold=0, edgeitems=1, formatter={"all": lambda _: "·"})
    return ServedRestorer(keras.saving.load_model(Path(path) / "model.keras", compile=False, safe_mode=True))
