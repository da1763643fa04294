"""Checks of the tracking store: a run opened, written, read and deleted, and the version of its server."""

from collections.abc import Callable
from urllib.parse import urlsplit

from tasks.machine.check import Checklist
from tasks.machine.versions import installed_versions
from workflow.tracking.probe import StoreProbe, probe_store, server_version
from workflow.tracking.store import shown, tracking_uri

REMEDY = "Set MLFLOW_TRACKING_URI to a store that is there."


def check_store(
    checks: Checklist, probe_of: Callable[[], StoreProbe] = probe_store, name: str = "MLflow store"
) -> StoreProbe | None:
    """Try the store; returns what was found, None where it cannot be used."""
    probe = None
    with checks.trying(name, "a run opened, written, read and deleted", REMEDY) as attempt:
        probe = probe_of()
        attempt.ok(f"{probe.uri}, artifacts in {probe.artifacts}, {probe.seconds:.1f} s")
        if probe.left is not None:
            attempt.warning(probe.left, "Check that you may delete runs, or remove it by hand.")
    return probe


def store_checks() -> Checklist:
    """Try the store, and ask its server, if it has one, for its version."""
    checks, uri = Checklist(), tracking_uri()
    check_store(checks)
    if urlsplit(uri).scheme in {"http", "https"}:
        with checks.trying("MLflow server", "asking its version", REMEDY) as attempt:
            theirs, ours = server_version(uri), installed_versions("mlflow")["mlflow"]
            seen = f"{shown(uri)} answers: MLflow {theirs}, here {ours}"
            if theirs.partition(".")[0] == ours.partition(".")[0]:
                attempt.ok(seen)
            else:
                attempt.warning(seen, f"Run a server of MLflow {ours}.")
    return checks
