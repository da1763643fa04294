"""The only package that imports MLflow: the store, runs and their single writer, models, and reading runs back."""

from workflow.tracking.inputs import InputVolume, described_volume, input_volume
from workflow.tracking.models import checked_model, logged_model, resolve_model
from workflow.tracking.recorder import Recorder, recorded_run
from workflow.tracking.registry import register_model
from workflow.tracking.store import RunAddress, tracking_uri

__all__ = ["InputVolume", "Recorder", "RunAddress"]
__all__ += ["described_volume", "input_volume", "recorded_run", "tracking_uri"]
__all__ += ["checked_model", "logged_model", "register_model", "resolve_model"]
