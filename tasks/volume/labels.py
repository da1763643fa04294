"""Label maps: recognised by header, by name, or by their values."""

import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from tasks.files.outputs import split_name, time_point
from tasks.volume.scan import Volume

LABEL_INTENT = 1002  # of NIfTI: each voxel is an index into a list of labels
NAMES = re.compile(r"(_dseg|(^|[^a-z])(aparc|aseg|wmparc)([^a-z].*)?)$", re.IGNORECASE)
MAX_LABEL = 1 << 31  # of the values that are counted; the largest that a label file holds
MAX_LABELS = 2048  # distinct values, beyond which voxels that say nothing else are intensities
COUNTED_VOXELS = 1 << 18  # of a slab, about
FEW_LABELS = 16  # up to it the histogram is too short to be smooth
MIN_EQUAL_SHARE = 0.8  # of neighbours within regions: an image has noise, a label map has none
MIN_ROUGHNESS = 0.5  # of a histogram: 2 where every other count is 0, near 0 where it is smooth


@dataclass(eq=False)
class ValueCounts:
    """Counts of whole-numbered voxels and of equal neighbours along i, for as long as they may be labels.

    In a large volume some planes are enough: counting all voxels would take as long as reading them.
    """

    may_be_labels: bool = True
    whole: bool = True
    voxels: dict[int, int] = field(default_factory=dict)
    pairs: dict[int, int] = field(default_factory=dict)
    equal: dict[int, int] = field(default_factory=dict)

    def add(self, slab: NDArray[np.float32]) -> None:
        """Count the voxels of a slab, `[i, j, planes]`; NaN and infinities are left out."""
        if not self.whole:
            return
        slab = slab[:, :, :: max(1, slab.size // COUNTED_VOXELS)]
        finite = np.isfinite(slab)
        self.whole = bool((slab == np.rint(slab)).all(where=finite))
        self.whole &= bool(np.abs(slab).max(where=finite, initial=0) < MAX_LABEL)
        self.may_be_labels &= self.whole
        if not self.may_be_labels:
            return
        first, second = slab[:-1], slab[1:]
        both = np.isfinite(first) & np.isfinite(second)
        for counts, values in (
            (self.voxels, slab[finite]),
            (self.pairs, first[both]),
            (self.equal, first[both & (first == second)]),
        ):
            for value, count in zip(*_counted(values), strict=True):
                counts[value] = counts.get(value, 0) + count
            if len(counts) > MAX_LABELS:
                self.may_be_labels = False
                return

    @property
    def are_labels(self) -> bool:
        """True for the values of a label map: few, in regions of equal voxels, without a smooth histogram."""
        if not self.may_be_labels or len(self.voxels) < 2:
            return False
        background = max(self.voxels, key=self.voxels.__getitem__)
        pairs = sum(count for value, count in self.pairs.items() if value != background)
        equal = sum(count for value, count in self.equal.items() if value != background)
        if not pairs or equal < MIN_EQUAL_SHARE * pairs:
            return False
        if len(self.voxels) <= FEW_LABELS:
            return True
        counts = [(value, count) for value, count in sorted(self.voxels.items()) if value != background]
        # Between values that are apart the histogram falls to 0 and rises again.
        steps = (
            abs(count - before) if value == other + 1 else count + before
            for (other, before), (value, count) in pairwise(counts)
        )
        return sum(steps) > MIN_ROUGHNESS * sum(count for _, count in counts)


def _counted(values: NDArray[np.float32]) -> tuple[list[int], list[int]]:
    """Return the distinct values and how often each occurs."""
    if not values.size:
        return [], []
    whole = values.astype(np.int64)
    low = int(whole.min())
    if int(whole.max()) - low < 1 << 20:
        counts = np.bincount(whole - low)
        found = np.flatnonzero(counts)
        return (found + low).tolist(), counts[found].tolist()
    found, counts = np.unique(whole, return_counts=True)
    return found.tolist(), counts.tolist()


def label_reason(name: str, intent: int, counts: ValueCounts) -> str:
    """Return why a file is taken for a label map, as a noun phrase; empty for an image.

    Args:
        name: Of the file.
        intent: Of its header; 0 where the format has none.
        counts: Of all its voxels.
    """
    if intent == LABEL_INTENT:
        return f"its NIfTI intent is {LABEL_INTENT}"
    if counts.whole and NAMES.search(split_name(name)[0]):
        return "its name says so, and its values are whole numbers"
    if counts.are_labels:
        return f"its {len(counts.voxels)} values are whole numbers in uniform regions"
    return ""


def require_image(path: Path, volume: Volume, unless: str) -> Volume:
    """Return a volume to learn from or to score on, which needs the intensities of an image.

    Args:
        path: Of its file, perhaps with a time point.
        volume: Read from it.
        unless: Names the setting by which a label map is taken for an image all the same.

    Raises:
        InputError: It is a label map.
    """
    name, counts = time_point(path)[0].name, ValueCounts()
    counts.add(volume.voxels)
    reason = label_reason(name, volume.header.intent if volume.header else 0, counts)
    if reason:
        raise InputError(
            f"Cannot use {name}: it is a label map ({reason}), and an image is needed here.",
            f"Leave it out, or give {unless} if it is an image.",
        )
    return volume
