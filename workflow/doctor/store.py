"""Doctor checks of MLflow: a run in the store, and the server."""

from urllib.parse import urlsplit

from tasks.machine.check import Check, Seen, checked
from tasks.machine.versions import installed_versions
from workflow.tracking.probe import probe_store, server_version
from workflow.tracking.store import shown, tracking_uri


def store_checks() -> list[Check]:
    """Try the store, and ask its server, if it has one, for its version."""
    uri = tracking_uri()
    remedy = "Set MLFLOW_TRACKING_URI to a store that is there."
    checks = [checked("MLflow store", "a run opened, written, read and deleted", _store, remedy)]
    if urlsplit(uri).scheme in {"http", "https"}:
        checks.append(checked("MLflow server", "asking its version", lambda: _server(uri), remedy))
    return checks


def _store() -> Seen:
    probe = probe_store()
    seen = f"{probe.uri}, artifacts in {probe.artifacts}, {probe.seconds:.1f} s"
    if probe.left is not None:
        return Seen(f"{seen}; {probe.left}", "warning", "See that you may delete runs, or remove it by hand.")
    return Seen(seen)


def _server(uri: str) -> Seen:
    theirs, ours = server_version(uri), installed_versions("mlflow")["mlflow"]
    seen = f"{shown(uri)} answers: MLflow {theirs}, here {ours}"
    if theirs.partition(".")[0] != ours.partition(".")[0]:
        return Seen(seen, "warning", f"Run a server of MLflow {ours}.")
    return Seen(seen)
