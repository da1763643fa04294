"""The NVIDIA GPUs of this machine, by their driver's library: known before TensorFlow is loaded."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pynvml

MIB = 2**20
# Of a card's free memory, for a shard as it is estimated: convolutions by phases hold the output of a stage twice more,
# and cuDNN takes memory to work in.
BUDGET_SHARE = 0.5


@dataclass(frozen=True)
class Card:
    """A GPU that this process may use.

    Args:
        token: Its name in `CUDA_VISIBLE_DEVICES`.
        free_mib: Its free memory, MiB.
    """

    token: str
    free_mib: int


def cards(environment: Mapping[str, str] = os.environ) -> tuple[Card, ...]:
    """List the GPUs that this process may use; none without a driver, and none of those that are hidden from it.

    Args:
        environment: Whose `CUDA_VISIBLE_DEVICES` counts.
    """
    found: dict[str, Card] = {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):  # a card that the driver lists and cannot reach
                card = pynvml.nvmlDeviceGetHandleByIndex(number)
                token = pynvml.nvmlDeviceGetUUID(card)
                found[str(number)] = Card(token, pynvml.nvmlDeviceGetMemoryInfo(card).free // MIB)
    finally:
        pynvml.nvmlShutdown()
    return visible(found, environment.get("CUDA_VISIBLE_DEVICES"))


def visible(found: Mapping[str, Card], wanted: str | None) -> tuple[Card, ...]:
    """Return the GPUs that CUDA would show, by their numbers or the beginnings of their UUIDs; all where none is named.

    >>> found = {"0": Card("GPU-ab", 1), "1": Card("GPU-cd", 2)}
    >>> [card.token for card in visible(found, "1,0")], visible(found, "-1"), visible(found, "")
    (['GPU-cd', 'GPU-ab'], (), ())
    >>> [card.token for card in visible(found, "GPU-c")], len(visible(found, None))
    (['GPU-cd'], 2)
    """
    if wanted is None:
        return tuple(found.values())
    shown = []
    for name in map(str.strip, wanted.split(",")):
        known = [
            card for number, card in found.items() if number == name or (name[:4] == "GPU-" and name in card.token)
        ]
        if len(known) != 1:  # CUDA shows none from the first that it does not know
            break
        shown += known
    return tuple(shown)


def card_budget_mib(found: Sequence[Card]) -> int:
    """The memory budget of a worker on any of these GPUs, MiB.

    A power of two: what else a card holds at the moment changes no plan, as long as it is little.

    >>> card_budget_mib([Card("GPU-ab", 143_000), Card("GPU-cd", 24_000)])
    8192
    """
    share = int(BUDGET_SHARE * min(card.free_mib for card in found))
    return 1 << max(0, share.bit_length() - 1)
