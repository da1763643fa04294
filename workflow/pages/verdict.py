"""The verdict on a restored volume: measures, each with the limits from which to look and to reject, and a remedy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tasks.scoring.quality import PERIODIC, SEAM, Seam, Spectrum
from tasks.volume.scan import Voxels

Verdict = Literal["pass", "look", "fail"]
ORDER: dict[Verdict, int] = {verdict: number for number, verdict in enumerate(get_args(Verdict))}

PERIODIC_FAIL, SEAM_FAIL = 2 * PERIODIC, 2 * SEAM
CONSISTENCY, CONSISTENCY_FAIL = 0.02, 0.1  # normalised intensity
NOISE_FACTOR = 2.0  # noise of the scan need not be in the restored volume
GAIN_FAIL = -0.5  # dB


@dataclass(frozen=True)
class Measure:
    """One number of a restored volume, and its limits.

    Args:
        name: Of what is measured, with its unit.
        value: Of the volume.
        look: Beyond it the volume has to be looked at.
        fail: Beyond it the volume is not to be used; below `look` where small values are bad.
        remedy: For a value beyond the limits.
        note: Where the value was found, or what to compare it with.
    """

    name: str
    value: float
    look: float
    fail: float
    remedy: str
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Verdict by this measure alone."""
        sign = 1 if self.fail > self.look else -1
        if not sign * self.value <= sign * self.fail:  # NaN too
            return "fail"
        return "look" if sign * self.value > sign * self.look else "pass"

    @property
    def limits(self) -> str:
        """The limits, in words.

        >>> Measure("gain [dB]", 1.0, look=0.0, fail=-0.5, remedy="").limits
        'look below 0, fail below -0.5'
        """
        where = "above" if self.fail > self.look else "below"
        return f"look {where} {self.look:.3g}, fail {where} {self.fail:.3g}"


def verdict_of(measures: Iterable[Measure], warnings: Sequence[str]) -> Verdict:
    """Return the worst verdict of the measures; a volume with warnings has to be looked at."""
    found: list[Verdict] = [measure.verdict for measure in measures]
    return max([*found, "look" if warnings else "pass"], key=ORDER.__getitem__)


def artefact_measures(before: Iterable[Spectrum], restored: Iterable[Spectrum], found: Sequence[Seam]) -> list[Measure]:
    """Judge the measures of `tasks.scoring.quality`: periodic noise along each axis, and the worst seam.

    Both over those of the input, whose interpolation has periods and whose anatomy has edges.
    """
    measures = [
        Measure(
            f"periodic noise along {'ijk'[after.axis]}",
            after.peak / max(1.0, was.peak),
            PERIODIC,
            PERIODIC_FAIL,
            "Look for stripes or a checkerboard in flat regions; if there are, use another model.",
            f"every {after.stride} voxels, {after.peak:.2f} times its surroundings; {was.peak:.2f} in the input",
        )
        for was, after in zip(before, restored, strict=True)
        if after.stride > 1 and after.amplitudes.size > 1  # long enough to be measured
    ]
    if found:
        worst = max(found, key=lambda seam: seam.excess)
        place = f"{'ijk'[worst.axis]} = {worst.place}, the worst of {len(found)}"
        measures.append(
            Measure("step at shard borders", worst.excess, SEAM, SEAM_FAIL, "Look for a straight edge there.", place)
        )
    return measures


def consistency_measure(difference: Voxels, noise: float | None) -> Measure:
    """Judge the restored volume, degraded again, minus the input.

    Args:
        difference: Normalised.
        noise: Standard deviation of the input's noise, as far as it is known: the difference may hold it.
    """
    known = noise or 0.0
    return Measure(
        "consistency with the input, RMS",
        float(np.sqrt(np.mean(difference**2, dtype=np.float64))),
        max(CONSISTENCY, NOISE_FACTOR * known),
        max(CONSISTENCY_FAIL, 2 * NOISE_FACTOR * known),
        "Check the acquisition that was assumed, or give it (--acquisition, --blur); do not use --no-correct.",
        "of the intensity range",
    )


def gain_measure(gain: float, baseline: str) -> Measure:
    """Judge the PSNR above that of the best baseline, in dB."""
    return Measure(
        "PSNR over the best baseline [dB]",
        gain,
        0.0,
        GAIN_FAIL,
        "Use the baseline, or a model that was trained for this acquisition.",
        f"which is {baseline}",
    )
