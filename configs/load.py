"""Read a configuration: a preset's name or a file, with overrides, into a `RunConfig`."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from configs.errors import ConfigError
from configs.schema import RunConfig

MAX_VALUES = 100_000  # of a configuration
MAX_SHOWN = 400  # characters of what was received, in a message


def preset_names() -> list[str]:
    """Return the names of the presets, which are the YAML files next to this module."""
    names = (entry.name for entry in files("configs").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def preset_descriptions() -> dict[str, str]:
    """Return the description of each preset, by the name of the preset; it follows the line that names the schema."""
    described = {}
    for name in preset_names():
        _, *lines = files("configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        comment = " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("# "), lines))
        described[name] = comment.partition(". ")[0].rstrip(".")
    return described


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        source: A preset's name or the path of a YAML file.
        overrides: Each `section.key=value`, the value in YAML.

    Returns:
        The resolved configuration.

    Raises:
        ConfigError: The file, a key or a value is wrong; the message names it and the remedy.
    """
    return _resolved(source, _content(source), overrides)


def load_sweep(source: str | Path) -> tuple[dict[str, Any], Callable[[Sequence[str]], RunConfig]]:
    """Read a configuration with a section `sweep`, which names the keys that are varied.

    Args:
        source: A preset's name or the path of a YAML file.

    Returns:
        The section, and a function that resolves the rest of the configuration with overrides.

    Raises:
        ConfigError: The file is wrong, or it has no such section.
    """
    content = _content(source)
    varied = content.pop("sweep", None)
    if not isinstance(varied, dict):
        raise ConfigError(
            f"Cannot sweep by the configuration {source}: it has no section sweep.",
            "Add one, such as sweep: {training.seed: [0, 1]}.",
        )
    return varied, lambda overrides: _resolved(source, deepcopy(content), overrides)


def _content(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if not path.suffix and str(source) in preset_names():
        path = Path(str(files("configs").joinpath(f"{source}.yaml")))
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"Cannot read the configuration {source}: {reason}.",
            f"Name a YAML file or one of the presets {', '.join(preset_names())}.",
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"Cannot read the configuration {source}: it is not YAML ({_one_line(error)}).") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"Cannot read the configuration {source}: the file must hold sections, received {_short(content)}."
        )
    return content


def _parsed(text: str) -> Any:  # noqa: ANN401 - what YAML holds
    """Parse YAML; YAMLError also where a few bytes stand for more than a configuration can be."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None and _values(node, {}) > MAX_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MAX_VALUES} values")
        return yaml.safe_load(text)
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; thousands of brackets
        raise yaml.YAMLError(str(error)) from None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values below a node, those of an alias wherever it stands."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES  # for an alias within what it stands for, which has no end
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values(one, known) for one in inner)
    return known[id(node)]


def _resolved(source: str | Path, content: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    for override in overrides:
        _apply(content, override)
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"Cannot use the configuration {source}: {_message(error)}") from None


def resolved_yaml(config: RunConfig) -> str:
    """Write a configuration with every default filled in, as YAML from which `load_config` reads the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: BaseModel, section: str = "") -> dict[str, str]:
    """Return every leaf of a configuration, or of one section of it, as `section.key` and its value as text."""

    def leaves(prefix: str, value: object) -> Iterator[tuple[str, str]]:
        if not isinstance(value, Mapping):
            yield prefix, str(value)
            return
        for key, inner in value.items():
            yield from leaves(f"{prefix}.{key}" if prefix else str(key), inner)

    return dict(leaves(section, config.model_dump(mode="json")))


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"Cannot apply {override[:MAX_SHOWN]}: the form is section.key=value.")
    try:
        value = _parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"Cannot apply {override[:MAX_SHOWN]}: the value is not YAML ({_one_line(error)}).") from None
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ConfigError(f"Cannot apply {override[:MAX_SHOWN]}: {section} holds {_short(content)}, not keys.")
    content[last] = value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_SHOWN]


def _short(value: object) -> str:
    """Return what was received, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


def _message(error: ValidationError) -> str:
    """Describe the first problem of a validation error."""
    # A misspelt required key is also a missing one: its name is more helpful.
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part)[:MAX_SHOWN] for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = _nearest(problem["loc"])
        return f"it has no key {key}.{f' Did you mean {near}?' if near else ''}"
    if problem["type"] == "missing":
        return f"the key {key} is required."
    message = problem["msg"].removeprefix("Value error, ")
    message = message if len(message) <= 2 * MAX_SHOWN else f"{message[: 2 * MAX_SHOWN]}…"
    received = "" if problem["type"] == "value_error" else f", received {_short(problem['input'])}"
    return f"{f'{key}: ' if key else ''}{message}{received}."


def _nearest(location: tuple[int | str, ...]) -> str | None:
    """Find the known key nearest to an unknown one, in full."""
    model: type[BaseModel] = RunConfig
    for part in location[:-1]:
        if isinstance(part, int):  # an index: the model of the entries is that of the list's field
            continue
        field = model.model_fields.get(str(part))
        candidates = [] if field is None else [field.annotation, *get_args(field.annotation)]
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not sections:
            return None
        model = sections[0]
    near = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1, cutoff=0.5)
    return ".".join([*(str(part) for part in location[:-1]), near[0]]) if near else None
