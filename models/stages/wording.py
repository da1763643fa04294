"""Formatting of sizes and axes in messages."""

from collections.abc import Iterable, Sequence


def by(values: Sequence[int]) -> str:
    """Numbers per axis as the command line takes them.

    >>> by((1, 2, 2)), by((1000000, 1000000, 1000000))
    ('1x2x2', '1000000')
    """
    texts = list(map(str, values))
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def shape_text(shape: Iterable[object]) -> str:
    """Write a shape.

    >>> shape_text((2, 4, 14, 14, 32))
    '[2, 4, 14, 14, 32]'
    """
    return f"[{', '.join(map(str, shape))}]"


def options(values: Sequence[int]) -> str:
    """Ascending whole numbers in words.

    >>> options(range(1)), options([13, 14]), options(range(9, 17))
    ('0', '13 or 14', '9 to 16')
    """
    if len(values) > 2:
        return f"{values[0]} to {values[-1]}"
    return " or ".join(map(str, values))


def listed(words: Sequence[str]) -> str:
    """Words with commas and an "and".

    >>> listed(["depth"]), listed(["depth", "height", "width"])
    ('depth', 'depth, height and width')
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def grouped(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Write notes on axes, naming together the axes that share one.

    >>> grouped([("depth", "no"), ("height", "yes"), ("width", "yes")])
    ['depth: no', 'height and width: yes']
    """
    axes: dict[str, list[str]] = {}
    for axis, note in notes:
        axes.setdefault(note, []).append(axis)
    return [f"{listed(names)}: {note}" for note, names in axes.items()]
