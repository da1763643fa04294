"""Model card: what a model was trained for, stored inside its `.keras` file, and warnings for a use outside of it."""

import zipfile
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from configs.axes import AXES, triple
from configs.data import Mixture
from configs.degradation import Degradation
from configs.errors import InputError
from configs.frozen import Frozen
from configs.schema import Network, RunConfig, StageConfig
from tasks.machine.versions import installed_versions

ENTRY = "card.json"  # of the archive; Keras ignores it
PACKAGES = ("voxlift", "keras", "tensorflow", "tensorflow-cpu", "numpy")
SCALE_LEEWAY = 1.05  # factors by which a use may differ from the training without a warning
SPACING_LEEWAY = 1.35

Three = tuple[float, float, float]
Span = tuple[float, float]


class TrainingData(Frozen):
    """Data that a model was trained on.

    Args:
        mixture: Where patches came from.
        volumes: How many real volumes.
        spacing: Smallest and largest mm per fine voxel of them; None where only synthetic anatomy trained.
    """

    mixture: Mixture
    volumes: int
    spacing: tuple[float, float] | None = None


class ModelCard(Frozen):
    """Description of a model: its network, and the task and data that it was trained for.

    Args:
        degradation: From fine to coarse.
        scale_range: Least and largest target voxels per voxel along depth, height and width.
        intensity_rule: Normalisation of the intensities.
        stages: Of the upsampler, from the latent.
        latent_filters: Channels of the latent.
        convolutions: Per level, the latent first.
        skip: How a stage joins the encoder's tensor of the same shape.
        activation: After every convolution but the last.
        input: As in `configs.schema.Network`.
        parameters: Trainable weights.
        training_data: What it was trained on.
        steps: Optimizer steps.
        seed: Of the training.
        versions: Of the programs.
    """

    format: Literal[1] = 1
    degradation: Degradation
    scale_range: tuple[Span, Span, Span]
    intensity_rule: str = (
        "0 and the 99.5th percentile of the positive voxels (of the foreground, where voxels are negative) become 0 and"
        " 1; clipped to 0..1.5"
    )
    stages: tuple[StageConfig, ...]
    latent_filters: int
    convolutions: tuple[int, ...] = Network().convolutions_per_level
    skip: str = Network().skip
    activation: str = Network().activation
    input: Literal["interpolated", "consistent"] = Network().input
    parameters: int
    training_data: TrainingData
    steps: int
    seed: int
    versions: dict[str, str]

    @property
    def network(self) -> Network:
        """The network as a configuration names it."""
        return Network.model_validate({name: getattr(self, name) for name in Network.model_fields})

    def covers(self, scale: Three) -> bool:
        """Return whether a scale, along depth, height and width, is in the range that the model was trained for."""
        limits = zip(scale, self.scale_range, strict=True)
        return all(low / SCALE_LEEWAY <= wanted <= high * SCALE_LEEWAY for wanted, (low, high) in limits)

    def warnings(self, scale: Three, spacing: Three) -> list[str]:
        """List in which respects a use is outside the range that the model was trained for.

        Args:
            scale: Target voxels per voxel along depth, height and width.
            spacing: Target mm per voxel along the same axes.
        """
        warnings = []
        for axis, wanted, (low, high) in zip(AXES, scale, self.scale_range, strict=True):
            if not low / SCALE_LEEWAY <= wanted <= high * SCALE_LEEWAY:
                warnings.append(f"scale {wanted:.3g} along {axis}: the model was trained for {_span(low, high)}")
        if self.training_data.spacing is not None:
            low, high = self.training_data.spacing
            if min(spacing) < low / SPACING_LEEWAY or max(spacing) > high * SPACING_LEEWAY:
                warnings.append(
                    f"target voxels of {' x '.join(f'{size:.3g}' for size in spacing)} mm: the model was trained on"
                    f" {low:.3g} to {high:.3g} mm"
                )
        return warnings

    def markdown(self) -> str:
        """Format the card as Markdown."""
        data = self.training_data
        recipe = ", ".join(
            f"{name} {axis.factor:g}x ({axis.profile}, blur {axis.blur_fwhm:g}, gap {axis.gap:g})"
            for name, axis in zip(AXES, self.degradation.axes, strict=True)
        )
        noise = self.degradation.noise
        ranges = ", ".join(f"{name} {_span(*limits)}" for name, limits in zip(AXES, self.scale_range, strict=True))
        parts = ", ".join(f"{name} {share:g}" for name, share in data.mixture.parts.items() if share)
        spacing = f"{data.spacing[0]:.3g} to {data.spacing[1]:.3g} mm" if data.spacing else "none"
        rows = {
            "degradation": f"{self.degradation.name}: {recipe}; {noise.kind} noise {noise.sigma:g}",
            "trained for a scale of": ranges,
            "intensities": self.intensity_rule,
            "trained on": f"{data.volumes} volume(s), voxels {spacing}; patches from {parts}",
            "training": f"{self.steps} steps, seed {self.seed}",
            "network": f"{self.parameters} weights, {len(self.stages)} stages, latent of {self.latent_filters} filters",
            "versions": ", ".join(f"{name} {number}" for name, number in self.versions.items()),
        }
        table = [f"| {name} | {value} |" for name, value in rows.items()]
        return "\n".join(["# Restorer", "", "| | |", "|---|---|", *table, ""])


def make_card(
    config: RunConfig, parameters: int, steps: int, volumes: int, spacing: tuple[float, float] | None
) -> ModelCard:
    """Make the card of a trained model."""
    return ModelCard(
        degradation=config.degradation,
        scale_range=triple(
            (min(low for low, _ in ranges), max(high for _, high in ranges))
            for ranges in zip(
                *(
                    [_range(factor, config.augmentation.factor) for factor in recipe.scale]
                    for recipe in (config.degradation, *config.augmentation.acquisitions)
                ),
                strict=True,
            )
        ),
        **(vars(config.network) | {"convolutions": config.network.convolutions_per_level}),
        parameters=parameters,
        training_data=TrainingData(mixture=config.data.mixture, volumes=volumes, spacing=spacing),
        steps=steps,
        seed=config.training.seed,
        versions=installed_versions(*PACKAGES),
    )


def add_card(model_path: Path, card: ModelCard) -> None:
    """Put a card into a `.keras` file that has none."""
    with zipfile.ZipFile(model_path, "a") as archive:
        archive.writestr(ENTRY, card.model_dump_json(indent=2))


def read_card(archive: zipfile.ZipFile, name: str) -> ModelCard | None:
    """Read the card of an opened `.keras` file; None where it carries none.

    Raises:
        InputError: The card is damaged or of a later format.
    """
    if ENTRY not in archive.namelist():
        return None
    try:
        return ModelCard.model_validate_json(archive.read(ENTRY))
    except ValidationError as error:
        raise InputError(
            f"Cannot use the model {name}: its card cannot be read ({error.errors()[0]['msg']}).",
            "It may come from a later version of voxlift.",
        ) from error


def _span(low: float, high: float) -> str:
    return f"{low:g} to {high:g}" if high > low else f"{low:g}"


def _range(factor: float, drawn: tuple[float, float]) -> tuple[float, float]:
    """Range of the factors that training draws around a factor of the recipe."""
    low, high = (max(1.0, factor * stretch) if factor > 1 else factor for stretch in drawn)
    return low, high
