"""Entries of the record of a run, and their writer: an entry that is written again changes nothing."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from configs.axes import NetworkShape
from tasks.artifacts.manifest import CONTRACTS_FILE, Contracts, ManifestEntry
from tasks.files.lock import Process
from tasks.files.trees import file_digest
from workflow.tracking import mlflow_api
from workflow.tracking.inputs import InputVolume, dataset_input
from workflow.tracking.models import log_model, logged_with, model_entries
from workflow.tracking.registry import Version, register_model
from workflow.tracking.store import PARENT_TAG, RunAddress, experiment_id, store_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

INPUT_TRIES = 3
CONTRACTS_TAG = "voxlift.contracts"
PROCESS_TAG = "voxlift.process"
# By which a store says that the entry is wrong, not that it cannot write now.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}


class Stored(BaseModel):
    """Base of what waits in a file; metrics may be NaN or infinite."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Opening(Stored):
    """The run itself, where the store did not answer when it began."""

    kind: Literal["opening"] = "opening"
    name: str
    tags: dict[str, str]
    start_time: int


class Address(Stored):
    """The address of the run, for the file by which it is resumed: known once the run is there."""

    kind: Literal["address"] = "address"
    file: Path


class Batch(Stored):
    """Metrics (name, value, milliseconds since 1970, step), of the model of the run too or not, parameters and tags."""

    kind: Literal["batch"] = "batch"
    metrics: tuple[tuple[str, float, int, int], ...] = ()
    of_model: bool = False
    parameters: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)


class Artifact(Stored):
    """A file, its folder among the artifacts of the run, and its manifest entry."""

    kind: Literal["artifact"] = "artifact"
    file: Path
    folder: str | None
    entry: ManifestEntry


class Manifest(Stored):
    """The `contracts.json` of the artifacts so far."""

    kind: Literal["manifest"] = "manifest"


class Inputs(Stored):
    """Volumes that the run works on."""

    kind: Literal["inputs"] = "inputs"
    volumes: tuple[InputVolume, ...]


class TrainedModel(Stored):
    """A `.keras` file that was checked, and the shape of the example to log with it."""

    kind: Literal["model"] = "model"
    file: Path
    entry: ManifestEntry
    example: NetworkShape


class Usage(Stored):
    """Digest of the file of a model that the run works with."""

    kind: Literal["usage"] = "usage"
    digest: str


class Registration(Stored):
    """The name under which the model of the run is registered."""

    kind: Literal["registration"] = "registration"
    name: str


class Ending(Stored):
    """The end of the run: its status, and when, in milliseconds since 1970."""

    kind: Literal["ending"] = "ending"
    status: str
    end_time: int


Entry = Annotated[
    Opening | Address | Batch | Artifact | Manifest | Inputs | TrainedModel | Usage | Registration | Ending,
    Field(discriminator="kind"),
]


class Writer:
    """Writes the entries of one run to its store.

    Args:
        address: Of the run; its id is empty until its opening is written.
        seals: Manifest entries of the artifacts that it has.
        client: Of the store; opened at the first entry by default.
    """

    def __init__(
        self,
        address: RunAddress,
        seals: Mapping[str, ManifestEntry] | None = None,
        client: "MlflowClient | None" = None,
    ) -> None:
        self.address, self.seals = address, dict(seals or {})
        self.model_uri: str | None = None
        self.version: Version | None = None
        self._client = client

    @property
    def client(self) -> "MlflowClient":
        """The client of the store; any error if the store does not answer."""
        if self._client is None:
            self._client = store_client(self.address.tracking_uri)
        return self._client

    def write(self, entry: Entry) -> None:
        """Write an entry; any error if the store does not take it."""
        client, run_id = self.client, self.address.run_id
        match entry:
            case Opening():
                self.address = replace(self.address, run_id=self._opened(entry))
            case Address(file=file):
                self.address.write(file)
            case Batch():
                self._log_batch(entry)
            case Artifact(file=file, folder=folder):
                client.log_artifact(run_id, str(file), folder)
                self.seals[f"{folder}/{file.name}" if folder else file.name] = entry.entry
            case Manifest():
                self._log_contracts()
            case Inputs(volumes=volumes):
                self._log_inputs(volumes)
            case TrainedModel() | Usage():
                self._log_model(entry)
            case Registration(name=name):
                self.version = register_model(self.address, self.model_uri or self._model(), name)
            case Ending():
                self._end(entry)

    def end_killed(self, end_time: int) -> None:
        """End the run of a killed process, unless it has ended."""
        self._log_contracts()
        if self.client.get_run(self.address.run_id).info.status == "RUNNING":
            self.client.set_terminated(self.address.run_id, "KILLED", end_time)

    def _opened(self, entry: Opening) -> str:
        """Make the run, unless it was made and the answer was lost; returns its id."""
        uri, parent = self.address.tracking_uri, entry.tags[PARENT_TAG]
        own = experiment_id(self.client, uri, self.address.experiment)
        for child in self.client.search_runs([own], f"tags.`{PARENT_TAG}` = '{parent}'"):
            if (child.info.run_name, child.data.tags.get(PROCESS_TAG)) == (entry.name, entry.tags[PROCESS_TAG]):
                return str(child.info.run_id)
        made = self.client.create_run(own, run_name=entry.name, tags=entry.tags, start_time=entry.start_time)
        return str(made.info.run_id)

    def _log_batch(self, entry: Batch) -> None:
        model_id = self.model_uri.removeprefix("models:/") if entry.of_model and self.model_uri else None
        self.client.log_batch(
            self.address.run_id,
            metrics=[mlflow_api.Metric(*metric, model_id) for metric in entry.metrics],
            params=[mlflow_api.Param(*parameter) for parameter in entry.parameters.items()],
            tags=[mlflow_api.RunTag(*tag) for tag in entry.tags.items()],
        )

    def _log_model(self, entry: TrainedModel | Usage) -> None:
        """Log the model that the run has trained, or name the one that it uses, if the store has that."""
        if isinstance(entry, TrainedModel):
            self.model_uri = log_model(self.client, self.address.run_id, entry.file, entry.entry, entry.example)
        elif model_id := logged_with(self.client, entry.digest):
            self.model_uri = f"models:/{model_id}"
            self.client.log_inputs(self.address.run_id, models=[mlflow_api.LoggedModelInput(model_id)])

    def _log_inputs(self, volumes: tuple[InputVolume, ...]) -> None:
        for attempt in range(INPUT_TRIES):
            try:
                self.client.log_inputs(self.address.run_id, datasets=[dataset_input(volume) for volume in volumes])
            except mlflow_api.MlflowException:
                # Of runs that make the entry of one volume at once, all but the first find it at the next attempt.
                if attempt == INPUT_TRIES - 1:
                    raise
            else:
                return

    def _model(self) -> str:
        return f"models:/{self.client.get_run(self.address.run_id).outputs.model_outputs[0].model_id}"

    def _end(self, entry: Ending) -> None:
        """Log the contracts of models too, and end the run."""
        run = self.client.get_run(self.address.run_id)
        with tempfile.TemporaryDirectory() as scratch:
            self.seals = model_entries(self.client, run, Path(scratch)) | self.seals
        self.client.set_tag(self.address.run_id, CONTRACTS_TAG, self._log_contracts())
        self.client.set_terminated(self.address.run_id, entry.status, entry.end_time)

    def _log_contracts(self) -> str:
        """Log the manifest; returns its digest."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / CONTRACTS_FILE
            path.write_text(Contracts(run_id=self.address.run_id, seals=self.seals).text())
            self.client.log_artifact(self.address.run_id, str(path))
            return file_digest(path)


def this_process() -> dict[str, str]:
    """Return the tag by which later starts find out whether the process of a run was killed."""
    return {PROCESS_TAG: Process.this().text()}


def is_refusal(error: BaseException) -> bool:
    """True if a store has refused an entry that it would refuse again."""
    cause = error if isinstance(error, mlflow_api.MlflowException) else error.__cause__
    return isinstance(cause, mlflow_api.MlflowException) and cause.error_code in REFUSALS
