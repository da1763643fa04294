"""`voxlift schema`."""

import json

import typer


def schema() -> None:
    """Print the JSON schema of the configuration, by which editors check and complete it."""
    from configs.schema import RunConfig

    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()}
    described["properties"]["sweep"] = {"type": "object", "description": "Values of the keys that a sweep varies."}
    typer.echo(json.dumps(described, indent=2))
