"""Images for the tests: a ramp in world space, written in any format, and where the real ones lie."""

import os
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

DIRECTION = np.array([1.0, 2.0, -1.5])


def data_folder() -> Path | None:
    """The folder of real volumes, or None where there is none."""
    folder = Path(os.environ.get("VOXLIFT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def packaged_volumes() -> list[Path]:
    """The volumes that nibabel and nilearn carry."""
    packages = [Path(str(find_spec(name).origin)).parent for name in ("nibabel", "nilearn")]  # type: ignore[union-attr]
    return sorted(
        path
        for package in packages
        for ending in ("*.nii", "*.nii.gz", "*.mgz", "*.mnc", "*.BRIK*")
        for path in package.rglob(ending)
        if ".dconn" not in path.name
    )


def affine(spacing=(1.0, 1.5, 3.0), angles=(0.0, 0.0, 0.0), axes="RAS", origin=(-20.0, 13.0, 7.0), shear=0.0):
    """An affine whose axes grow in the directions of `axes`, rotated by `angles` degrees, sheared by a tangent."""
    columns = np.zeros((3, 3))
    for axis, letter in enumerate(axes):
        columns["RASLPI".index(letter) % 3, axis] = 1 if letter in "RAS" else -1
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    made = np.eye(4)
    made[:3, :3] = turn @ columns @ np.array([[1, 0, 0], [0, 1, shear], [0, 0, 1]]) @ np.diag(spacing)
    made[:3, 3] = origin
    return made


def world(matrix, indices):
    """World places of voxel indices `[..., 3]`."""
    return indices @ matrix[:3, :3].T + matrix[:3, 3]


def voxel_indices(shape):
    """The index of every voxel, float `[*shape, 3]`."""
    return np.moveaxis(np.indices(shape), 0, -1).astype(float)


def ramp_at(matrix, shape, indices):
    """A linear function of world space that spans 10 to 240 over the voxels of `shape`, at voxel indices `[..., 3]`."""
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), -1)
    values = world(matrix, corners) @ DIRECTION
    low, span = values.min(), float(np.ptp(values)) or 1.0
    return 10 + 230 * (world(matrix, indices) @ DIRECTION - low) / span


def ramp(matrix, shape):
    """That function at every voxel."""
    return ramp_at(matrix, shape, voxel_indices(shape))


def clamped_ramp(matrix, shape, fine_matrix, fine_shape):
    """Return what linear interpolation of the ramp must give on another grid: edge values extended."""
    coarse = world(np.linalg.inv(matrix) @ fine_matrix, voxel_indices(fine_shape))
    return ramp_at(matrix, shape, np.clip(coarse, 0, np.array(shape) - 1))


def corners(matrix, shape):
    """World places of the outer voxel corners, `[8, 3]`."""
    return world(matrix, np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], indexing="ij"), -1)).reshape(-1, 3)


def save(path, voxels, matrix, kind=nibabel.Nifti1Image, dtype=None, codes=(1, 1), slope=None, unit="mm", **fields):
    """Write an image of float voxels as `dtype`, with slope and intercept, codes, unit and further header fields."""
    dtype = np.dtype(dtype or np.float32)
    gain, offset = slope or (1, 0)
    stored = (voxels - offset) / gain
    stored = (np.rint(stored) if dtype.kind in "iu" else stored).astype(dtype)
    if kind in (nibabel.MGHImage, nibabel.AnalyzeImage, nibabel.Spm99AnalyzeImage):
        image = kind(stored, matrix)
    else:
        header = kind.header_class(endianness=">" if dtype.byteorder == ">" else "<")
        header.set_data_dtype(dtype)
        image = kind(stored, None, header)
        image.set_sform(matrix, codes[1])
        image.set_qform(matrix, codes[0])
        image.header.set_xyzt_units(unit, "sec")
        image.header.set_slope_inter(gain, offset)
        for name, value in fields.items():
            image.header[name] = value
    nibabel.save(image, path)
    return path


def fifteen_storages(folder):
    """One image in fifteen axis orders and directions: the real ones, or made the same way in `folder`."""
    real = data_folder()
    if real:
        return sorted((real / "orientations").glob("*.nii.gz"))
    voxels = ndimage.gaussian_filter(np.random.default_rng(0).random((26, 32, 27), np.float32), 2)
    image = nibabel.Nifti1Image((200 * voxels).astype("u1"), affine((2.4, 2.4, 2.4)))
    orders = ["ALI", "ALS", "ARS", "LAI", "LAS", "LPI", "LPS", "PLI", "PLS", "PRI", "PRS", "RAI", "RAS", "RPI", "RPS"]
    before = nibabel.io_orientation(image.affine)
    for axes in orders:
        turn = nibabel.orientations.ornt_transform(before, nibabel.orientations.axcodes2ornt(axes))
        nibabel.save(image.as_reoriented(turn), folder / f"{axes}.nii.gz")
    return [folder / f"{axes}.nii.gz" for axes in orders]
