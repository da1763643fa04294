"""Training data of a run: files, synthetic anatomy, augmentation."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from configs.degradation import NamedDegradation
from configs.frozen import Frozen


class HeldOut(Frozen):
    """The slab of a training volume that is kept for scoring, and the gap that separates it from training.

    Attributes:
        axis: Voxel axis of the file along which `start` and `stop` bound the slab.
        start: First part of the slab, as a fraction of the axis' extent.
        stop: End of the slab, as a fraction.
        gap: Voxels on each side of the slab that neither trains nor is scored.
    """

    axis: Literal[0, 1, 2] = 1
    start: float = Field(2 / 3, ge=0, le=1)
    stop: float = Field(1.0, ge=0, le=1)
    gap: int = Field(16, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start >= self.stop:
            raise ValueError(f"start must be below stop, received {self.start} and {self.stop}")
        return self


class Mixture(Frozen):
    """Sources of training patches, as relative shares.

    Attributes:
        volumes: The volumes as they are.
        slices: Through-plane training from the volumes' own sharp planes: a slice, or its likeness in three dimensions,
            is degraded along one of its in-plane axes. For thick-slice scans without any finer volume.
        shapes: Synthetic anatomy of random shapes.
        tissues: Synthetic anatomy of the MNI152 template's tissues.
    """

    volumes: float = Field(1, ge=0)
    slices: float = Field(0, ge=0)
    shapes: float = Field(0, ge=0)
    tissues: float = Field(0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not any(self.parts.values()):
            raise ValueError("at least one part must be above 0")
        return self

    @property
    def parts(self) -> dict[str, float]:
        """The share of each source, by name."""
        return {"volumes": self.volumes, "slices": self.slices, "shapes": self.shapes, "tissues": self.tissues}


class Data(Frozen):
    """Training data.

    Attributes:
        volumes: Files. None means the MNI152 T1 template at 1 mm that nilearn carries.
        mixture: Where patches come from.
        held_out: The part of the volume that is kept for scoring.
        validation: Files on which early stopping scores the network, and by which a sweep ranks its trainings; never
            trained on.
        kind: "image" takes all files for images, also those that look like label maps, which are refused without it.
    """

    volumes: tuple[Path, ...] = ()
    mixture: Mixture = Mixture()
    held_out: HeldOut | None = None
    validation: tuple[Path, ...] = ()
    kind: Literal["image"] | None = None


class Augmentation(Frozen):
    """Augmentation of the training anatomy; each value is drawn anew for every piece.

    Attributes:
        gain: Spread of the gain, on the natural logarithm.
        gamma: Spread of the exponent applied to intensities, on the natural logarithm.
        bias: Largest relative swing of a smooth bias field.
        invert: Share of pieces whose contrast is inverted.
        sharpen: Largest amount of unsharp masking of the volumes; a template is smoother than any brain.
        blur: The recipe's blur is multiplied by a number drawn between these.
        factor: The recipe's factors over 1, and its blur along those axes, are multiplied by a number drawn between
            these: slices of several thicknesses. The losses `consistency` and `null_space` go by the recipe itself.
        noise: Standard deviation of the noise added to the coarse volume is drawn between these, in normalised
            intensity.
        rician: Share of pieces with the noise of a magnitude, as in MR scans, instead of that of their acquisition.
        noiseless: Share of pieces to which no noise is added.
        kspace: Share of synthetic pieces that are imaged by k-space truncation, with the window and the zero filling of
            some scanner, instead of a Gaussian blur: fine volumes are scans too.
        smooth: Largest standard deviation, in voxels, of a Gaussian that smooths half of the pieces: some subjects are
            smoother than others.
        texture: Standard deviation of the noise of the fine volume itself is drawn between these, in normalised
            intensity: no scan is free of it, and what a network removes of it may have been anatomy.
        acquisitions: Degradations of which one is drawn for each piece; the run's own alone if empty.
        reorient: Whether any axis of isotropic anatomy may become the slice axis, where the degradation is not the same
            along all axes.
        mistaken: Share of pieces whose acquisition the network takes to be one of `assumed`, as it must for a scan of
            which nothing is known.
        assumed: Names of such acquisitions; without them, the one that is named first. Only those of the scale of a
            piece are taken for it.
    """

    gain: float = Field(0.2, ge=0)
    gamma: float = Field(0.0, ge=0)
    bias: float = Field(0.0, ge=0, lt=1)
    invert: float = Field(0.0, ge=0, le=1)
    sharpen: float = Field(0.0, ge=0)
    blur: tuple[float, float] = (1.0, 1.0)
    factor: tuple[float, float] = (1.0, 1.0)
    noise: tuple[float, float] = (0.0, 0.0)
    rician: float = Field(0.0, ge=0, le=1)
    noiseless: float = Field(0.0, ge=0, le=1)
    kspace: float = Field(0.0, ge=0, le=1)
    smooth: float = Field(0.0, ge=0)
    texture: tuple[float, float] = (0.0, 0.0)
    acquisitions: tuple[NamedDegradation, ...] = ()
    reorient: bool = False
    mistaken: float = Field(0.0, ge=0, le=1)
    assumed: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        ranges = {"blur": self.blur, "factor": self.factor, "noise": self.noise, "texture": self.texture}
        for name, (low, high) in ranges.items():
            if not 0 <= low <= high:
                raise ValueError(f"{name} must be a range from low to high, from 0 on, received {low} and {high}")
        unknown = set(self.assumed) - {recipe.name for recipe in self.acquisitions}
        if unknown:
            raise ValueError(f"assumed must name some of acquisitions, received {', '.join(sorted(unknown))}")
        return self
