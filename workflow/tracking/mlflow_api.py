"""The names of MLflow that this package uses, each imported at its first use.

MLflow takes more than a second to import: wrong input is reported, and folders are checked, without it.
"""

from importlib import import_module
from typing import Any

NAMES = {
    "mlflow": "MlflowClient pyfunc",
    "mlflow.artifacts": "download_artifacts",
    "mlflow.entities": "Dataset DatasetInput InputTag LifecycleStage LoggedModelInput LoggedModelOutput"
    " LoggedModelStatus Metric Param RunTag",
    "mlflow.exceptions": "MlflowException",
    "mlflow.models": "Model ModelSignature",
    "mlflow.protos.databricks_pb2": "ErrorCode RESOURCE_DOES_NOT_EXIST",
    "mlflow.store.artifact.artifact_repository_registry": "get_artifact_repository",
    "mlflow.system_metrics.system_metrics_monitor": "SystemMetricsMonitor",
    "mlflow.types": "Schema TensorSpec",
    "mlflow.utils.credentials": "get_default_host_creds",
    "mlflow.utils.rest_utils": "http_request",
}
MODULES = {name: module for module, names in NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - MLflow has no types
    if name not in MODULES:
        raise AttributeError(f"MLflow's {name} is not among the names that are used.")
    return getattr(import_module(MODULES[name]), name)
