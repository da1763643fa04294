"""Super-resolve volumes in Python, in this process: from a nibabel image to a nibabel image.

    import nibabel
    from voxlift import Restorer

    finer = Restorer()(nibabel.load("scan.nii.gz"))

The command line (`voxlift upscale`) does the same through workers, and records it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from configs.axes import triple
from configs.degradation import Profile
from configs.precision import Precision
from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile, read_network
from tasks.artifacts.shipped import shipped_network
from workflow.upscale.plan import UpscaleRequest
from workflow.upscale.volumes import plan_volumes, upscale

__all__ = ["Restorer"]


class Restorer:
    """Super-resolves 3D and 4D images; the network is loaded with the first of them.

    Args:
        model: A `.keras` file, or a folder that holds `model.keras`; without it the geometry of an image chooses
            between the networks that ship.
        memory_budget_mib: What the restoration may take beyond the process as it is, in MiB.
        ensemble: 8 restores every mirror image and averages them: a little better, eight times the work.
        precision: Of the network's layers: TF32, which needs a GPU, and bfloat16 are faster on GPUs.

    Raises:
        configs.errors.InputError: There is no such model.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        memory_budget_mib: int = 2000,
        ensemble: Literal[1, 8] = 1,
        precision: Precision = "float32",
    ) -> None:
        self._resources = Resources(workers=1, memory_budget_mib=memory_budget_mib)
        self._ensemble, self._precision = ensemble, precision
        if model is None:
            self._given = None
        else:
            path = Path(model)
            self._given = read_network(path / "model.keras" if path.is_dir() else path)

    def __call__(
        self,
        image: nibabel.spatialimages.SpatialImage,
        *,
        scale: float | Sequence[float] | None = None,
        spacing: float | Sequence[float] | None = None,
        acquisition: Profile | None = None,
        blur: Sequence[float] | None = None,
        slice_thickness: float | None = None,
        dtype: str | None = None,
    ) -> nibabel.Nifti1Image:
        """Super-resolve an image.

        Args:
            image: With three axes of space, and perhaps one of time.
            scale: Target voxels per voxel, for all axes or along (i, j, k); without it and a spacing, thick slices
                become as thin as their voxels are wide, and other scans become 2x finer.
            spacing: Wanted mm per voxel instead, likewise.
            acquisition: How the voxels were made, "kspace", "box" or "gaussian"; without it a default is assumed.
            blur: FWHM of a blur on top of that along (i, j, k), in voxels of the image.
            slice_thickness: In mm; what the slice distance leaves of it are gaps.
            dtype: Of the result; that of the image by default.

        Returns:
            The image on the target grid, over the same field of view.

        Raises:
            configs.errors.InputError: The image cannot be super-resolved.
        """
        network, thick = self._given or shipped_network(), None if self._given else shipped_network(thick=True)
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder, "image.nii"), Path(folder, "restored")
            image.to_filename(source)
            request = UpscaleRequest(
                [source],
                out,
                self._prepared(network),
                self._resources,
                scale=_along_axes(scale),
                spacing=_along_axes(spacing),
                dtype=dtype,
                profile=acquisition,
                blur=_along_axes(blur),
                slice_thickness=slice_thickness,
                fail_fast=True,
                thick_network=thick and self._prepared(thick),
                experts=self._given is None,
                place="here",
            )
            (volume,) = upscale(request, plan_volumes(request)).volumes
            restored = nibabel.load(volume.output)
            return nibabel.Nifti1Image(np.asanyarray(restored.dataobj), restored.affine, restored.header)

    def _prepared(self, network: NetworkFile) -> NetworkFile:
        """Take over the ensemble and the precision."""
        return replace(network.flipped() if self._ensemble > 1 else network, precision=self._precision)


def _along_axes(given: float | Sequence[float] | None) -> tuple[float, float, float] | None:
    """Repeat one number for all axes."""
    return given if given is None else triple(np.broadcast_to(given, 3).tolist())
