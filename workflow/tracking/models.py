"""Trained models in the store: checked when they are logged and loaded, and found by any of their names.

A model is a folder that MLflow loads and serves without a pickle.
"""

import atexit
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from configs.axes import NetworkShape
from configs.errors import ContractError, InputError
from configs.load import preset_names
from tasks.artifacts.contracts import ModelContract
from tasks.artifacts.manifest import ManifestEntry, manifest_entry
from tasks.artifacts.network_file import read_network, reproducible
from tasks.files.trees import file_digest
from tasks.machine.versions import installed_versions
from workflow.tracking import mlflow_api, serving
from workflow.tracking.store import RunAddress, opened_store, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DIGEST_TAG = "voxlift.sha256"  # of the file with the weights


def logged_model(
    address: RunAddress, model_path: Path, probe_shapes: Sequence[NetworkShape], contract: ModelContract | None = None
) -> Iterator[str]:
    """Check a trained model, as `checked_model`, and log it; yields the model's URI, once."""
    (entry,) = checked_model(model_path, probe_shapes, contract)
    client = mlflow_api.MlflowClient(tracking_uri=address.tracking_uri)
    yield log_model(client, address.run_id, model_path, entry, probe_shapes[0])


def checked_model(
    model_path: Path, probe_shapes: Sequence[NetworkShape], contract: ModelContract | None = None
) -> Iterator[ManifestEntry]:
    """Check a trained model against its contract, through MLflow's own loader; it needs no store.

    Loads TensorFlow: it runs in a worker.

    Args:
        model_path: The `.keras` file.
        probe_shapes: Depth, height and width of inputs that the model must return in their own shape; the first is
            also that of the example.
        contract: Of the model; a restorer of any stride by default.

    Yields:
        The manifest entry of the file, once.

    Raises:
        ContractError: The file, or the output of the network, violates the contract.
    """
    contract = contract or ModelContract()
    entry = manifest_entry(model_path, contract)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_folder(folder, model_path, entry, probe_shapes[0])
        require_answers(folder, contract, probe_shapes)
    yield entry


def log_model(
    client: "MlflowClient", run_id: str, model_path: Path, entry: ManifestEntry, example: NetworkShape
) -> str:
    """Log a model that was checked; returns its URI.

    A run that has logged the same network already keeps that one.

    Args:
        client: Of the store.
        run_id: Of the run.
        model_path: The `.keras` file.
        entry: Of the file.
        example: Depth, height and width of the logged example.
    """
    run = client.get_run(run_id)
    if known := _logged_before(client, run, model_path):
        return f"models:/{known}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_folder(folder, model_path, entry, example)
        entity = client.create_logged_model(
            run.info.experiment_id,
            "model",
            source_run_id=run.info.run_id,
            tags={DIGEST_TAG: entry.sha256},
            params=run.data.params,
            model_type="restorer",
        )
        write_mlmodel(folder, entry, run.info.run_id, entity.model_id)
        client.log_model_artifacts(entity.model_id, str(folder))
        client.finalize_logged_model(entity.model_id, mlflow_api.LoggedModelStatus.READY)
        client.log_outputs(run.info.run_id, [mlflow_api.LoggedModelOutput(entity.model_id, step=0)])
    return f"models:/{entity.model_id}"


def resolve_model(text: str) -> Path:
    """Find the `.keras` file of a model, and check it against the manifest entry logged with it.

    Args:
        text: A `.keras` file, a folder that holds one, `models:/NAME/VERSION`, `models:/NAME@ALIAS` or
            `runs:/RUN/model`.

    Returns:
        A local file; one fetched from a store is removed when the process ends.

    Raises:
        InputError: There is no such model, or it is not the one that was logged.
    """
    folder = _fetched(text) if text.startswith(("models:/", "runs:/")) else Path(text)
    if folder.is_file():
        return folder
    files = sorted(folder.glob(MODEL_FILE)) or sorted(folder.glob("*.keras"))
    if not folder.exists() and text in preset_names():
        raise InputError(
            f"Cannot load the model {text}: it is a preset, a configuration from which a model is trained.",
            f"Train it with `voxlift train {text}`, then name the folder runs/{text}.",
        )
    if len(files) != 1:
        what = "is no file or folder" if not folder.is_dir() else f"holds {len(files)} .keras files"
        raise InputError(
            f"Cannot load the model {text}: it {what}.",
            "Name a .keras file, a folder with one, models:/NAME@champion or runs:/RUN/model.",
        )
    logged = logged_entry(folder)
    if logged and file_digest(files[0]) != logged.sha256:
        said = "; ".join(logged.problems(files[0]))
        raise InputError(f"Cannot load the model {text}: {files[0].name} differs from what was logged: {said}.")
    return files[0]


def logged_with(client: "MlflowClient", digest: str) -> str | None:
    """Return the id of the newest logged model with a file of that digest, None if the store has none."""
    found = client.search_logged_models(
        [experiment.experiment_id for experiment in client.search_experiments()],
        filter_string=f"tags.`{DIGEST_TAG}` = '{digest}'",
        max_results=1,
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
    )
    return str(found[0].model_id) if found else None


def model_entries(client: "MlflowClient", run: "Run", into: Path) -> dict[str, ManifestEntry]:
    """Fetch the models that a run has logged into a folder; returns manifest entries by path within the run."""
    entries: dict[str, ManifestEntry] = {}
    for folder in fetch_models(client, run, into).values():
        known = logged_entry(folder)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            inside = path.relative_to(into).as_posix()
            entries[inside] = known if known and inside.endswith(MODEL_FILE) else manifest_entry(path)
    return entries


def fetch_models(client: "MlflowClient", run: "Run", into: Path) -> dict[str, Path]:
    """Fetch the models that a run has logged into `model`, `model-2`, …; returns these folders by the model's id.

    Models that have lost all their files are left out.
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
    """Fetch a model's folder; MLflow's own loader of `models:/` uses a global store, this the client's."""
    location, store = _location(client, uri), str(client.tracking_uri)
    return Path(mlflow_api.download_artifacts(artifact_uri=location, dst_path=str(into), tracking_uri=store))


def _location(client: "MlflowClient", uri: str) -> str:
    """Return the location of the folder of a model.

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
    return _location(client, source) if source.startswith("models:/") else str(source)


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


MODEL_FILE = "data/model.keras"
SERVING_MODULE = "voxlift_serving"
CONTRACT_KEY = "voxlift"


def logged_entry(folder: Path) -> ManifestEntry | None:
    """Return the manifest entry of the `.keras` file from an `MLmodel`, None if voxlift did not write it."""
    try:
        metadata = yaml.safe_load((folder / "MLmodel").read_text())["metadata"]
        return ManifestEntry.model_validate_json(metadata[CONTRACT_KEY])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None


def network_of(path: Path) -> bytes:
    """Identity of a network: its file, without what differs between two savings of one network by an older version."""
    return reproducible(path.read_bytes())


def write_folder(folder: Path, model_path: Path, entry: ManifestEntry, example: NetworkShape) -> None:
    """Write all that MLflow needs to load a model: weights, serving code, an example, packages, card."""
    (folder / "data").mkdir(parents=True)
    (folder / "code").mkdir()
    shutil.copyfile(model_path, folder / MODEL_FILE)
    shutil.copyfile(serving.__file__, folder / "code" / f"{SERVING_MODULE}.py")
    volume = [[[[0.0]] * example[2]] * example[1]] * example[0]
    (folder / "input_example.json").write_text(json.dumps([volume]))
    (folder / "serving_input_example.json").write_text(json.dumps({"inputs": [volume]}))
    # What a clean process needs to load the model, pinned to the versions that saved it.
    pinned = installed_versions("mlflow", "keras", "tensorflow", "tensorflow-cpu", "numpy").items()
    (folder / "requirements.txt").write_text("".join(f"{package}=={number}\n" for package, number in pinned))
    version = ".".join(map(str, sys.version_info[:3]))
    python = {"python": version, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(yaml.safe_dump(python))
    if card := read_network(model_path).card:
        (folder / "README.md").write_text(card.markdown())
    write_mlmodel(folder, entry)


def write_mlmodel(folder: Path, entry: ManifestEntry, run_id: str | None = None, model_id: str | None = None) -> None:
    """Write the `MLmodel`: signature with its free axes, both flavours, and the manifest entry of the weights."""
    assert isinstance(entry.contract, ModelContract)  # noqa: S101 - what `manifest_entry` was given
    tensor = entry.contract.tensor()
    # Unnamed: Keras gives the input another name when it is loaded again.
    shape = tuple(-1 if size is None else size for size in tensor.shape)
    spec = mlflow_api.Schema([mlflow_api.TensorSpec(np.dtype(tensor.dtype), shape)])
    known: dict[str, Any] = {"model_uuid": model_id, "model_id": model_id} if model_id else {}
    model = mlflow_api.Model(
        run_id=run_id,
        signature=mlflow_api.ModelSignature(inputs=spec, outputs=spec),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "ndarray",
        },
        metadata={CONTRACT_KEY: entry.model_dump_json()},
        **known,
    )
    model.add_flavor(
        "keras", data="data", keras_version=installed_versions("keras")["keras"], save_exported_model=False
    )
    mlflow_api.pyfunc.add_to_model(
        model, loader_module=SERVING_MODULE, data="data", code="code", python_env="python_env.yaml", conda_env=None
    )
    model.save(str(folder / "MLmodel"))


def require_answers(folder: Path, contract: ModelContract, shapes: Sequence[NetworkShape]) -> None:
    """Call the model, loaded by MLflow, and check the shape of its output against the contract.

    Raises:
        ContractError: The output violates it.
    """
    loaded = mlflow_api.pyfunc.load_model(str(folder))
    for shape in shapes:
        probe = np.zeros((1, *shape, contract.channels), contract.dtype)
        try:
            answer = loaded.predict(probe)
        except ValueError as error:
            raise ContractError(f"The model violates its contract: {error}") from None
        contract.tensor(shape, batch=1).require("The output of the model", answer.shape, answer.dtype.name)
