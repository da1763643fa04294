"""Compare weights that might ship without any scan: `python -m benchmarks.candidates kspace2x MODEL.keras …`.

Each network is given the acquisition, and restores as the command does, 36 blocks as it is trained on, of another seed,
and 10 of a synthetic head as CT shows it, whose sharp and thin bone no training has. Prints gains over cubic, dB.

The candidate with the highest mean over all blocks and levels of noise is the one to ship: a rule that is there before
the figures, and leaves the scans that scores are measured on to measure.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.robustness import Restoration
from configs.axes import NetworkShape
from configs.degradation import Degradation, Noise, named_degradation
from configs.load import load_config
from tasks.artifacts.network_file import read_network
from tasks.imaging.consistency import consistent_interpolation
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.scoring.metrics import foreground_mask, psnr
from tasks.training.blocks import BlockSource
from workflow.train.data import training_volumes

Array = NDArray[np.float32]

SIZE = 96
SHAPE = NetworkShape(SIZE, SIZE, SIZE)
BLOCKS, HEADS = 36, 10
SEED, HEAD_SEED = 4242, 77
NOISE = (0.0, 0.02, 0.05)
EDGE = 0.5  # voxels over which a surface passes from one tissue to the other
BRIGHTEST = 99.5  # percentile of the foreground that is 1


def anatomy(recipe: Degradation) -> list[Array]:
    config = load_config("universal2x")
    given = config.data.mixture, [recipe], config.augmentation, SHAPE, SEED, config.network.input
    source = BlockSource(training_volumes(config), *given)
    heads = (head(np.random.default_rng((HEAD_SEED, number))) for number in range(HEADS))
    return [source.draw(number).fine for number in range(BLOCKS)] + list(heads)


def head(random: np.random.Generator) -> Array:
    """Draw part of a head in CT: skin, skull of two tables and the spongy bone between, brain, and small inclusions."""
    places = np.stack(np.meshgrid(*[np.arange(SIZE) - SIZE / 2 + 0.5] * 3, indexing="ij"), -1).astype(np.float32)

    def inside(centre: Array, radii: Array, turn: Array) -> Array:
        """Return the distance to an ellipsoid, negative inside, to first order."""
        turned = (places - centre) @ turn
        scaled, slope = (np.linalg.norm(turned / radii**power, axis=-1) for power in (1, 2))
        return np.asarray(scaled * (scaled - 1) / np.maximum(slope, 1e-6))

    def turn() -> Array:
        return np.asarray(np.linalg.qr(random.normal(size=(3, 3)))[0], np.float32)

    def uniform(low: float, high: float) -> Array:
        return random.uniform(low, high, 3).astype(np.float32)

    def field(width: float) -> Array:
        return np.asarray(gaussian_filter(random.normal(size=SHAPE), width), np.float32)

    units = np.full(SHAPE, -1000, np.float32)  # Hounsfield

    def fill(distance: NDArray[np.floating], tissue: float | Array) -> None:
        share = 1 / (1 + np.exp(np.clip(distance / EDGE, -30, 30)))
        units[:] = units * (1 - share) + tissue * share

    whole_turn, centre, radii = turn(), uniform(-30, 30), uniform(45, 75)
    bumps = field(8)
    bumps *= 3 / bumps.std()
    surface = inside(centre, radii, whole_turn) + 0.5 * bumps
    fill(surface, random.uniform(0, 60))
    skin, skull = random.uniform(3, 8), random.uniform(4, 8)
    for depth, lowest, highest in ((0.0, 900, 1600), (0.3, 300, 700), (0.7, 900, 1600)):
        fill(surface + skin + depth * skull, random.uniform(lowest, highest))
    fill(surface + skin + skull + 0.2 * bumps, 30 + field(3) * np.float32(random.uniform(80, 160)))
    for _ in range(random.integers(3, 9)):
        place, size = uniform(-40, 40), uniform(2, 9)
        fill(inside(place, size, turn()), random.choice([-1000, -1000, 5, 1200, 2500]))
    scanned = gaussian_filter(units, random.uniform(0.4, 0.65)) + field(0.6) * random.uniform(5, 30)
    voxels = (scanned + 1000).clip(0).astype(np.float32)
    return np.asarray(voxels / np.percentile(voxels[foreground_mask(voxels)], BRIGHTEST), np.float32)


def main(recipe: Degradation, models: list[Path]) -> None:
    volumes, restorations = anatomy(recipe), [Restoration(read_network(model)) for model in models]
    gains = np.empty((len(models) + 1, len(NOISE), len(volumes)))
    for level, sigma in enumerate(NOISE):
        noisy = recipe.model_copy(update={"noise": Noise(kind="rician", sigma=sigma)})
        for number, fine in enumerate(volumes):
            coarse, mask = degrade(fine, noisy, 1), foreground_mask(fine)
            corrected = consistent_interpolation(coarse, SHAPE, noisy, sigma)
            found = [corrected, *(restore(coarse, SHAPE, noisy) for restore in restorations)]
            cubic = psnr(fine, resample(coarse, SHAPE), mask)
            gains[:, level, number] = [psnr(fine, each, mask) - cubic for each in found]
    columns = [f"{kind}, noise {sigma:.0%}" for sigma in NOISE for kind in ("blocks", "heads")]
    print(" | ".join(["weights", *columns, "mean"]))
    for name, row in zip(["cubic with correction", *map(str, models)], gains, strict=True):
        means = [part.mean() for level in row for part in (level[:BLOCKS], level[BLOCKS:])]
        print(" | ".join([name, *(f"{gain:+.2f}" for gain in (*means, row.mean()))]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("degradation")
    parser.add_argument("models", nargs="+", type=Path)
    asked = parser.parse_args()
    main(named_degradation(asked.degradation), asked.models)
