"""Seeded changes of bytes, of text and of what JSON holds."""

import copy
import json
from typing import Any

import numpy as np

BYTES = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x01",
    b"\0\0\xc0\x7f",
    b"\0\0\x80\x7f",
    b"\xff\x7f",
    b"\0\x80",
    b"\xff" * 8,
]
TEXT = [b"'", b'"', b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r", b"\t", b"&a", b"*a", b"!!", b"---", b"\x1b[31m"]
TEXT += [b"null", b"nan", b".inf", b"-1", b"1e999", b"9" * 5000, b"[" * 3000, b"\xed\xa0\x80", b"\xe2\x80\xae", b"../"]
VALUES: list[Any] = [None, True, [], {}, "", "../x", "/", "\x1b[31m", "\ud800", "a" * 5000, 0, -1, 10**40, 1.5, 1e308]
VALUES += [float("nan"), float("inf"), [[]], {"": None}, [1, "2"], ["a"] * 100, {"class_name": "Lambda"}, "🙂\n"]


def mutated_bytes(raw: bytes, generator: np.random.Generator, *, first: int | None = None) -> bytes:
    """Replace one to eight places by random or extreme bytes, and sometimes cut the whole.

    Args:
        raw: The bytes.
        generator: Of chance.
        first: Only so many bytes at the start are changed.
    """
    changed = bytearray(raw)
    for _ in range(generator.integers(1, 9)):
        place = int(generator.integers(0, min(first or len(raw), len(raw)) or 1))
        new = BYTES[generator.integers(len(BYTES))] if generator.random() < 0.5 else generator.bytes(2)
        changed[place : place + len(new)] = new
    return bytes(changed[: generator.integers(1, len(changed))]) if generator.random() < 0.05 else bytes(changed)


def mutated_text(raw: bytes, generator: np.random.Generator) -> bytes:
    """Insert, remove, repeat or replace parts of a text, in one to four places."""
    for _ in range(generator.integers(1, 5)):
        start, length = int(generator.integers(0, len(raw) + 1)), int(generator.geometric(0.1))
        part = raw[start : start + length]
        new = [TEXT[generator.integers(len(TEXT))], b"", part * 3, generator.bytes(3)][
            generator.choice(4, p=(0.5, 0.2, 0.2, 0.1))
        ]
        raw = raw[:start] + new + raw[start + (0 if generator.random() < 0.5 else length) :]
    return raw


def mutated_value(value: Any, generator: np.random.Generator) -> Any:
    """Copy what JSON holds, with one to three of its values or keys changed."""
    value = copy.deepcopy(value)
    for _ in range(generator.integers(1, 4)):
        places = list(_places(value))
        if not places:
            return VALUES[generator.integers(len(VALUES))]
        holder, key = places[generator.integers(len(places))]
        match generator.integers(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(generator.integers(10))] = holder.pop(key)
            case 2:  # the value of another place, of a type that is right somewhere
                other, name = places[generator.integers(len(places))]
                if name in other if isinstance(other, dict) else name < len(other):
                    holder[key] = copy.deepcopy(other[name])
            case 3:
                for _ in range(int(generator.choice([1, 3, 100]))):
                    holder[key] = [holder[key]]
            case _:
                holder[key] = copy.deepcopy(VALUES[generator.integers(len(VALUES))])
    return value


def mutated_json(raw: bytes, generator: np.random.Generator) -> bytes:
    """Change the values of a JSON text three times out of four, and else the text itself."""
    if generator.random() < 0.25:
        return mutated_text(raw, generator)
    if generator.random() < 0.02:  # deeper than Python writes
        return b"[" * 5000 + raw + b"]" * 5000
    return json.dumps(mutated_value(json.loads(raw), generator)).encode()


def _places(value: Any) -> Any:
    """Yield every place in nested lists and dictionaries: its holder and its key."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            waiting.append(holder[key])
