"""Check that runs can be recorded: the store, and the experiments by name; leaves no new file."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from configs.errors import InputError
from workflow.tracking.probe import StoreProbe, probe_store
from workflow.tracking.store import SQLITE, opened_store, require_experiment, shown, tracking_uri


def try_store(experiments: Sequence[str]) -> StoreProbe:
    """Write a run to the store, read it back and delete it; look whether the experiments may be recorded in.

    A SQLite file that is not there yet is tried out in a scratch folder next to its place.

    Args:
        experiments: Names; those that are not there would be made by the run.

    Raises:
        InputError: The store cannot be used, or an experiment was deleted.
    """
    uri = tracking_uri()
    place = sqlite_path(uri)
    if place is not None and not place.exists():
        with _scratch_beside(place, uri) as scratch:
            probe = probe_store(f"{SQLITE}{scratch / place.name}")
        return StoreProbe(shown(uri), (place.resolve().parent / "mlruns").as_uri(), probe.seconds, None)
    probe = probe_store(uri)
    with opened_store("record", uri) as client:
        for name in experiments:
            require_experiment(client, uri, name)
    return probe


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store, None for any other store."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


@contextmanager
def _scratch_beside(place: Path, uri: str) -> Iterator[Path]:
    standing = next(folder for folder in place.resolve().parents if folder.exists())
    try:
        scratch = tempfile.TemporaryDirectory(dir=standing, prefix=".voxlift-probe-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(
            f"Cannot record in the tracking store {shown(uri)}: {error.strerror or error}.",
            "Make room there and see that you may write, or set MLFLOW_TRACKING_URI to a store that is there.",
        ) from error
    with scratch as name:
        yield Path(name)
