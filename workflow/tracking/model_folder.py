"""A model as MLflow keeps it: a folder that it loads and serves without a pickle."""

import json
import shutil
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from configs.errors import ContractError
from tasks.artifacts.contracts import ModelContract
from tasks.artifacts.manifest import ManifestEntry
from tasks.artifacts.network_file import read_network
from workflow.tracking import mlflow_api, serving

MODEL_FILE = "data/model.keras"
SERVING_MODULE = "voxlift_serving"
CONTRACT_KEY = "voxlift"


def logged_entry(folder: Path) -> ManifestEntry | None:
    """Return the manifest entry of the `.keras` file that stands in an `MLmodel`, None if voxlift did not write it."""
    try:
        metadata = yaml.safe_load((folder / "MLmodel").read_text())["metadata"]
        return ManifestEntry.model_validate_json(metadata[CONTRACT_KEY])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None


def network_of(path: Path) -> set[tuple[str, int]]:
    """Identity of a network: checksums of architecture, weights and card, not the date in the file."""
    with zipfile.ZipFile(path) as archive:
        return {(entry.filename, entry.CRC) for entry in archive.infolist() if entry.filename != "metadata.json"}


def write_folder(folder: Path, model_path: Path, seal: ManifestEntry, example: tuple[int, int, int]) -> None:
    """Write all that MLflow wants to load a model: weights, the code that answers, an example, packages, card."""
    (folder / "data").mkdir(parents=True)
    (folder / "code").mkdir()
    shutil.copyfile(model_path, folder / MODEL_FILE)
    shutil.copyfile(serving.__file__, folder / "code" / f"{SERVING_MODULE}.py")
    volume = [[[[0.0]] * example[2]] * example[1]] * example[0]
    (folder / "input_example.json").write_text(json.dumps([volume]))
    (folder / "serving_input_example.json").write_text(json.dumps({"inputs": [volume]}))
    (folder / "requirements.txt").write_text("\n".join(_requirements()) + "\n")
    python = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "build_dependencies": ["pip"],
        "dependencies": ["-r requirements.txt"],
    }
    (folder / "python_env.yaml").write_text(yaml.safe_dump(python))
    if card := read_network(model_path).card:
        (folder / "README.md").write_text(card.markdown())
    write_mlmodel(folder, seal)


def write_mlmodel(folder: Path, seal: ManifestEntry, run_id: str | None = None, model_id: str | None = None) -> None:
    """Write the `MLmodel`: signature with the true free axes, both flavours, and the manifest entry of the weights."""
    output_contract = seal.contract
    assert isinstance(output_contract, ModelContract)  # noqa: S101 - what `manifest_entry` was given
    tensor = output_contract.tensor()
    # Unnamed: Keras gives the input another name when it is loaded again.
    spec = mlflow_api.Schema(
        [mlflow_api.TensorSpec(np.dtype(tensor.dtype), tuple(-1 if size is None else size for size in tensor.shape))]
    )
    known: dict[str, Any] = {"model_uuid": model_id, "model_id": model_id} if model_id else {}
    model = mlflow_api.Model(
        run_id=run_id,
        signature=mlflow_api.ModelSignature(inputs=spec, outputs=spec),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "ndarray",
        },
        metadata={CONTRACT_KEY: seal.model_dump_json()},
        **known,
    )
    model.add_flavor("keras", data="data", keras_version=version("keras"), save_exported_model=False)
    mlflow_api.pyfunc.add_to_model(
        model, loader_module=SERVING_MODULE, data="data", code="code", python_env="python_env.yaml", conda_env=None
    )
    model.save(str(folder / "MLmodel"))


def require_answers(folder: Path, output_contract: ModelContract, shapes: Sequence[tuple[int, int, int]]) -> None:
    """Ask the model, loaded by MLflow, and check that what it returns has the shape in the contract.

    Raises:
        ContractError: It has not.
    """
    loaded = mlflow_api.pyfunc.load_model(str(folder))
    for shape in shapes:
        probe = np.zeros((1, *shape, output_contract.channels), output_contract.dtype)
        try:
            answer = loaded.predict(probe)
        except ValueError as error:
            raise ContractError(f"The model departs from its contract: {error}") from None
        output_contract.tensor(shape, batch=1).require("The output of the model", answer.shape, answer.dtype.name)


def _requirements() -> list[str]:
    """List the packages that a clean process needs to load the model, pinned to the versions that saved it."""
    found = []
    for package in ("mlflow", "keras", "tensorflow", "tensorflow-cpu", "numpy"):
        try:
            found.append(f"{package}=={version(package)}")
        except PackageNotFoundError:
            continue
    return found
