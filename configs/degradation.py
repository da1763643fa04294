"""Degradation of a fine volume to a coarse one: a typed recipe, stored with every score."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from configs.errors import ConfigError
from configs.frozen import Frozen

Apodisation = Literal["none", "hamming", "tukey"]
Profile = Literal["kspace", "box", "gaussian"]


class AxisDegradation(Frozen):
    """Degradation along one axis; lengths are in fine voxels.

    Args:
        factor: Fine voxels per coarse voxel, whole or not; sizes are rounded and the field of view is kept.
        blur_fwhm: Full width at half maximum of a Gaussian applied first; 0 for none.
        profile: How one coarse voxel gathers fine ones: "box" their mean, "gaussian" a slice profile whose FWHM is the
            slice thickness, "kspace" all lower spatial frequencies and none above, with the ringing of a scanner.
        gap: Share of the factor that lies between slices and is not seen; the slice thickness is `factor·(1 − gap)`.
        apodisation: Window over the acquired k-space of the profile "kspace": "hamming", or "tukey" with a taper over
            the outer half.
        zero_filling: Coarse voxels per acquired sample of the profile "kspace": the reconstructed matrix over the
            acquired one.
    """

    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    blur_fwhm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    profile: Profile = "box"
    gap: Annotated[float, Field(ge=0, lt=1)] = 0.0
    apodisation: Apodisation = "none"
    zero_filling: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _profile_has_them(self) -> Self:
        if self.profile != "kspace" and (self.apodisation != "none" or self.zero_filling != 1):
            raise ValueError(f"apodisation and zero_filling belong to the profile kspace, received {self.profile}")
        return self


class Noise(Frozen):
    """Noise of the coarse voxels.

    Args:
        kind: "gaussian" adds; "rician" is the magnitude of a complex signal with noise in both parts.
        sigma: Standard deviation in the unit of the voxels that are degraded, normalised ones in training and scores.
    """

    kind: Literal["gaussian", "rician"] = "gaussian"
    sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Degradation(Frozen):
    """A recipe from fine to coarse in network axes: depth is the slice axis."""

    name: str
    depth: AxisDegradation = AxisDegradation()
    height: AxisDegradation = AxisDegradation()
    width: AxisDegradation = AxisDegradation()
    noise: Noise = Noise()

    @property
    def axes(self) -> tuple[AxisDegradation, AxisDegradation, AxisDegradation]:
        """The three axes in network order."""
        return self.depth, self.height, self.width

    @property
    def scale(self) -> tuple[float, float, float]:
        """Fine voxels per coarse voxel along depth, height and width."""
        return self.depth.factor, self.height.factor, self.width.factor

    @property
    def is_isotropic(self) -> bool:
        """True if the three axes are degraded alike, so that any of them may serve as the slice axis."""
        return self.depth == self.height == self.width


def isotropic(name: str, axis: AxisDegradation) -> Degradation:
    """Degrade all three axes alike."""
    return Degradation(name=name, depth=axis, height=axis, width=axis)


def thick_slices(name: str, axis: AxisDegradation) -> Degradation:
    """Degrade along the slice axis alone."""
    return Degradation(name=name, depth=axis)


DEGRADATIONS: dict[str, Degradation] = {
    recipe.name: recipe
    for recipe in (
        isotropic("iso2x", AxisDegradation(factor=2, blur_fwhm=2)),
        isotropic("kspace2x", AxisDegradation(factor=2, profile="kspace")),
        isotropic("box2x", AxisDegradation(factor=2)),
        thick_slices("thick3x", AxisDegradation(factor=3)),
        thick_slices("thick4x", AxisDegradation(factor=4)),
        thick_slices("thick4x_gaussian", AxisDegradation(factor=4, profile="gaussian")),
        thick_slices("thick4x_gap", AxisDegradation(factor=4, gap=0.25)),
        thick_slices("thick6x", AxisDegradation(factor=6)),
    )
}


def named_degradation(name: str) -> Degradation:
    """Return the degradation of that name.

    Raises:
        ConfigError: No degradation has it.
    """
    if name not in DEGRADATIONS:
        raise ConfigError(
            f"Cannot degrade by {name!r}: no such degradation.", f"Choose one of {', '.join(DEGRADATIONS)}."
        )
    return DEGRADATIONS[name]


NamedDegradation = Annotated[
    Degradation,
    BeforeValidator(
        lambda given: named_degradation(given) if isinstance(given, str) else given,
        json_schema_input_type=Degradation | Annotated[str, Field(json_schema_extra={"enum": [*DEGRADATIONS]})],
    ),
]
