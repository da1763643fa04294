"""Trained models in the store: checked before they are logged and on loading, found by every name they go by."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import InputError
from tasks.artifacts.contracts import ModelContract
from tasks.artifacts.manifest import ManifestEntry, file_digest, manifest_entry
from workflow.tracking import mlflow_api
from workflow.tracking.model_folder import (
    MODEL_FILE,
    logged_entry,
    network_of,
    require_answers,
    write_folder,
    write_mlmodel,
)
from workflow.tracking.store import RunAddress, opened_store, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def logged_model(
    address: RunAddress,
    model_path: Path,
    probe_shapes: Sequence[tuple[int, int, int]],
    contract: ModelContract | None = None,
) -> Iterator[str]:
    """Check a trained model against its contract, through MLflow's own loader, and log it.

    A resumed run that has logged the same network already keeps that one.

    Loads TensorFlow: it runs in a worker.

    Args:
        address: Of the run.
        model_path: The `.keras` file.
        probe_shapes: Depth, height and width of the inputs that the model must answer in their own shape; the first is
            that of the example that is logged.
        contract: Of the model; a restorer of any stride by default.

    Yields:
        The model's URI, once.

    Raises:
        ContractError: The file, or what the network returns, departs from the contract.
    """
    client = mlflow_api.MlflowClient(tracking_uri=address.tracking_uri)
    run = client.get_run(address.run_id)
    output_contract = contract or ModelContract()
    seal = manifest_entry(model_path, output_contract)
    if known := _logged_before(client, run, model_path):
        yield f"models:/{known}"
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_folder(folder, model_path, seal, probe_shapes[0])
        require_answers(folder, output_contract, probe_shapes)
        entity = client.create_logged_model(
            run.info.experiment_id,
            "model",
            source_run_id=run.info.run_id,
            params=run.data.params,
            model_type="restorer",
        )
        write_mlmodel(folder, seal, run.info.run_id, entity.model_id)
        client.log_model_artifacts(entity.model_id, str(folder))
        client.finalize_logged_model(entity.model_id, mlflow_api.LoggedModelStatus.READY)
        client.log_outputs(run.info.run_id, [mlflow_api.LoggedModelOutput(entity.model_id, step=0)])
    yield f"models:/{entity.model_id}"


def resolve_model(text: str) -> Path:
    """Find the `.keras` file that a person means, and check it against what was logged with it.

    Args:
        text: A `.keras` file, a folder that holds one, `models:/NAME/VERSION`, `models:/NAME@ALIAS` or
            `runs:/RUN/model`.

    Returns:
        A local file; what was fetched from a store is removed when the process ends.

    Raises:
        InputError: There is no such model, or it is not the one that was logged.
    """
    folder = _fetched(text) if text.startswith(("models:/", "runs:/")) else Path(text)
    if folder.is_file():
        return folder
    files = sorted(folder.glob(MODEL_FILE)) or sorted(folder.glob("*.keras"))
    if len(files) != 1:
        what = "is no file or folder" if not folder.is_dir() else f"holds {len(files)} .keras files"
        raise InputError(
            f"Cannot load the model {text}: it {what}.",
            "Name a .keras file, a folder with one, models:/NAME@champion or runs:/RUN/model.",
        )
    seal = logged_entry(folder)
    if seal and file_digest(files[0]) != seal.sha256:
        said = "; ".join(seal.problems(files[0]))
        raise InputError(f"Cannot load the model {text}: {files[0].name} departs from what was logged: {said}.")
    return files[0]


def model_entries(client: "MlflowClient", run: "Run", into: Path) -> dict[str, ManifestEntry]:
    """Make manifest entries for every file of the models that a run has logged.

    Args:
        client: Of the store.
        run: The run.
        into: Folder that the files are fetched to, as `model/…`.

    Returns:
        Entries by path within the run.
    """
    seals: dict[str, ManifestEntry] = {}
    for folder in fetch_models(client, run, into).values():
        known = logged_entry(folder)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            inside = path.relative_to(into).as_posix()
            seals[inside] = known if known and inside.endswith(MODEL_FILE) else manifest_entry(path)
    return seals


def fetch_models(client: "MlflowClient", run: "Run", into: Path) -> dict[str, Path]:
    """Fetch the models that a run has logged into the folders `model`, `model-2`, … of a folder.

    Returns:
        The folders by the id of the model; without those of models that have lost all their files.
    """
    folders = {}
    outputs = run.outputs.model_outputs if run.outputs else []
    for number, output in enumerate(outputs, start=1):
        if not client.list_logged_model_artifacts(output.model_id):
            continue  # an empty folder cannot be fetched
        folder = into / ("model" if number == 1 else f"model-{number}")
        with tempfile.TemporaryDirectory(dir=into) as scratch:
            _download(client, f"models:/{output.model_id}", Path(scratch)).rename(folder)
        folders[output.model_id] = folder
    return folders


def _logged_before(client: "MlflowClient", run: "Run", model_path: Path) -> str | None:
    """Return the id of the model of a run that holds the same network as a file, None if there is none."""
    with tempfile.TemporaryDirectory() as scratch:
        for model_id, folder in fetch_models(client, run, Path(scratch)).items():
            if (folder / MODEL_FILE).is_file() and network_of(folder / MODEL_FILE) == network_of(model_path):
                return model_id
    return None


def _download(client: "MlflowClient", uri: str, into: Path) -> Path:
    """Fetch a model's folder; MLflow's own loader of `models:/` goes by a global store, this by the client's."""
    place = _place(client, uri)
    return Path(
        mlflow_api.download_artifacts(artifact_uri=place, dst_path=str(into), tracking_uri=str(client.tracking_uri))
    )


def _place(client: "MlflowClient", uri: str) -> str:
    """Return where the folder of a model lies.

    Raises:
        ValueError: The URI has another form, or the run has no model.
        MlflowException: The store does not know it.
    """
    kind, _, rest = uri.partition(":/")
    name, _, which = rest.partition("/")
    if kind == "runs":
        outputs = client.get_run(name).outputs
        if not outputs or not outputs.model_outputs:
            raise ValueError("the run has logged no model")
        name, which = outputs.model_outputs[0].model_id, ""
    if "@" in name and not which:
        name, _, alias = name.partition("@")
        source = client.get_model_version_by_alias(name, alias).source
    elif which:
        source = client.get_model_version(name, which).source
    else:
        return str(client.get_logged_model(name).artifact_location)
    return _place(client, source) if source.startswith("models:/") else str(source)


def _fetched(uri: str) -> Path:
    """Fetch a model from the store."""
    scratch = Path(tempfile.mkdtemp(prefix="voxlift-model-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    try:
        with opened_store("find the model") as client:
            return _download(client, uri, scratch)
    except (OSError, ValueError) as error:
        said = " ".join(str(error.__cause__ or error).split())[:200].rstrip(".")
        raise InputError(
            f"Cannot load the model {uri}: {said}.",
            f"Look at the models of {tracking_uri()}, or set MLFLOW_TRACKING_URI to another store.",
        ) from error
