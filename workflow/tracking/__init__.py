"""The only package that imports MLflow: the store, runs and their single writer, models, and reading runs back.

Each name is imported at its first use: reading runs back needs nothing of what writes them and checks their files.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workflow.tracking.inputs import InputVolume, described_volume, input_volume
    from workflow.tracking.models import checked_model, logged_model, resolve_model
    from workflow.tracking.recorder import Recorder, recorded_run
    from workflow.tracking.registry import register_model
    from workflow.tracking.store import RunAddress, check_store, tracking_uri
else:
    MODULES = {
        "inputs": "InputVolume described_volume input_volume",
        "models": "checked_model logged_model resolve_model",
        "recorder": "Recorder recorded_run",
        "registry": "register_model",
        "store": "RunAddress check_store tracking_uri",
    }

    def __getattr__(name: str) -> object:
        for module, names in MODULES.items():
            if name in names.split():
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__} has no attribute {name}")


__all__ = ["InputVolume", "Recorder", "RunAddress"]
__all__ += ["check_store", "described_volume", "input_volume", "recorded_run", "tracking_uri"]
__all__ += ["checked_model", "logged_model", "register_model", "resolve_model"]
