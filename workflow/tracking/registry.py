"""Registered models: their versions, champion, challenger, and the reason of a promotion."""

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import InputError
from workflow.tracking import mlflow_api
from workflow.tracking.store import RunAddress, opened_store, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Version:
    """One version of a registered model, the run that trained it, and its alias: "champion", "challenger" or None."""

    name: str
    version: str
    run_id: str
    alias: str | None

    @property
    def uri(self) -> str:
        """URI by which every command finds the model."""
        return f"models:/{self.name}/{self.version}"


def register_model(address: RunAddress, model_uri: str, name: str) -> Version:
    """Register a logged model: the first of a name is its champion, each later one the challenger.

    One that is registered already, by an earlier part of a resumed run, keeps its version.

    Args:
        address: Of the run that trained it.
        model_uri: As `logged_model` returned it.
        name: Of the registered model; made if it is not there.
    """
    with opened_store("register the model", address.tracking_uri) as client:
        degradation = client.get_run(address.run_id).data.tags.get("degradation", "an unknown degradation")
        # Another process may be registering the first of this name.
        with suppress(mlflow_api.MlflowException):
            client.create_registered_model(name, description=_description(name, degradation))
        source = _source(client, address.tracking_uri, model_uri)
        for known in client.search_model_versions(f"name = '{name}' and run_id = '{address.run_id}'"):
            if known.source in {model_uri, source}:
                # What a search finds lacks its aliases.
                aliases = client.get_model_version(name, known.version).aliases
                return _version(known, next(iter(aliases), None))
        made = client.create_model_version(
            name,
            source,
            address.run_id,
            description=f"Trained for {degradation}.",
            model_id=model_uri.removeprefix("models:/"),
            await_creation_for=0,
        )
        alias = CHALLENGER if CHAMPION in client.get_registered_model(name).aliases else CHAMPION
        client.set_registered_model_alias(name, alias, made.version)
    return Version(name, str(made.version), address.run_id, alias)


def _source(client: "MlflowClient", uri: str, model_uri: str) -> str:
    """Return by what a store finds a logged model: MLflow ignores that of its client."""
    if uri == tracking_uri() or uri.startswith("http"):
        return model_uri
    return str(client.get_logged_model(model_uri.removeprefix("models:/")).artifact_location)


def _description(name: str, degradation: str) -> str:
    return (
        f"Super-resolution networks of voxlift, trained for {degradation}. The version with the alias {CHAMPION} is the"
        f" one to use: `voxlift upscale SCAN --model models:/{name}@{CHAMPION}`. `voxlift promote {name} REFERENCE…`"
        f" compares the {CHALLENGER} with it on fine volumes."
    )


def model_of_run(run_id: str) -> str:
    """Return the URI of the first model that a run has logged."""
    with opened_store("find the model") as client:
        outputs = client.get_run(run_id).outputs
        return f"models:/{outputs.model_outputs[0].model_id}"


def aliased_version(name: str, alias: str) -> Version:
    """Return the version of a registered model that has an alias.

    Raises:
        InputError: There is no such model, or none of its versions has the alias.
    """
    with opened_store("find the model") as client:
        try:
            found = client.get_model_version_by_alias(name, alias)
        except mlflow_api.MlflowException:
            raise InputError(
                f"Cannot find the {alias} of {name}: no version has that alias in {tracking_uri()}."
                f" Registered models: "
                f"{', '.join(sorted(model.name for model in client.search_registered_models())) or 'none'}.",
            ) from None
        return _version(found, alias)


def conclude(version: Version, reason: str, *, promoted: bool) -> None:
    """Record why a version was promoted or not, and make one that was promoted the champion of its name."""
    verdict = "promoted" if promoted else "not promoted"
    with opened_store("record the promotion") as client:
        if promoted:
            client.set_registered_model_alias(version.name, CHAMPION, version.version)
            if str(client.get_registered_model(version.name).aliases.get(CHALLENGER)) == version.version:
                client.delete_registered_model_alias(version.name, CHALLENGER)
        client.set_model_version_tag(version.name, version.version, "promotion", verdict)
        client.update_model_version(version.name, version.version, description=f"{verdict}: {reason}")


def _version(found: "ModelVersion", alias: str | None) -> Version:
    return Version(found.name, str(found.version), found.run_id, alias)
