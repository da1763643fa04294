"""Grid of a sweep: lists and ranges in a configuration, expanded to trainings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

from configs.errors import ConfigError

KEY = "sweep"
MAX_TRAININGS = 500


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Args:
        number: From 1.
        settings: Its varied keys, each `section.key=value`.
    """

    number: int
    settings: tuple[str, ...]


def trials(varied: Mapping[str, Any]) -> list[Trial]:
    """Make every combination of what is varied.

    Args:
        varied: By `section.key`: a list of values, or a range `{from: 0.001, to: 0.004, steps: 3}`, with `log: true`
            by equal factors instead of equal differences.

    Raises:
        ConfigError: Nothing is varied, or a key is given neither a list nor a range.

    >>> [trial.settings for trial in trials({"training.seed": [0, 1]})]
    [('training.seed=0',), ('training.seed=1',)]
    >>> trials({"training.learning_rate": {"from": 0.001, "to": 0.004, "steps": 3, "log": True}})[1].settings
    ('training.learning_rate=0.002',)
    """
    axes = [[f"{key}={_text(value)}" for value in _values(key, given)] for key, given in varied.items()]
    if not axes:
        raise ConfigError(f"Cannot sweep: the section {KEY} of the configuration names no key to vary.")
    made = [Trial(number, settings) for number, settings in enumerate(product(*axes), start=1)]
    if len(made) > MAX_TRAININGS:
        raise ConfigError(f"Cannot sweep: {len(made)} trainings are more than {MAX_TRAININGS}.", "Vary less at a time.")
    return made


def _values(key: str, given: Any) -> Sequence[Any]:  # noqa: ANN401 - whatever YAML holds
    if isinstance(given, list) and given:
        return given
    if isinstance(given, Mapping) and set(given) - {"log"} == {"from", "to", "steps"}:
        low, high, steps, log = given["from"], given["to"], given["steps"], given.get("log", False)
        numbers = all(isinstance(value, int | float) for value in (low, high)) and isinstance(steps, int)
        if numbers and steps >= 2 and (not log or low > 0 < high):
            shares = [place / (steps - 1) for place in range(steps)]
            values = [low * (high / low) ** share if log else low + (high - low) * share for share in shares]
            whole = isinstance(low, int) and isinstance(high, int)
            return [round(value) if whole else float(f"{value:.6g}") for value in values]
    raise ConfigError(
        f"Cannot sweep over {key}: give a list of values, or a range such as {{from: 0.001, to: 0.004, steps: 3}} (with"
        f" log: true for equal factors), received {given!r}."
    )


def _text(value: Any) -> str:  # noqa: ANN401 - whatever YAML holds
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...").strip()
