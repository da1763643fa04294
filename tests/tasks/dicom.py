"""Real DICOM files of a small volume, written by pydicom as a scanner would: one file a slice."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

PATIENT = "Doe^Jane"
STUDY = generate_uid(entropy_srcs=["study"])


def write_series(
    folder: Path, voxels: NDArray[np.int16], affine: NDArray[np.float64], *, number: int = 1, description: str = "T1"
) -> None:
    """Write voxels `[i, j, k]` whose affine leads to RAS+ mm as a series of MR images, k across the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    series = generate_uid(entropy_srcs=["series", str(number)])
    for k in range(voxels.shape[2]):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, generate_uid(entropy_srcs=[series, str(k)])
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = STUDY, series, STUDY
        image.PatientName, image.PatientID, image.PatientBirthDate = PATIENT, "4711", "19700102"
        image.Modality, image.Manufacturer, image.MagneticFieldStrength = "MR", "voxlift", "3"
        image.SeriesNumber, image.InstanceNumber, image.SeriesDescription = number, k + 1, description
        image.ProtocolName, image.ImageType, image.ScanningSequence = description, ["ORIGINAL", "PRIMARY", "M"], "GR"
        image.StudyDate = image.SeriesDate = image.AcquisitionDate = datetime(2020, 5, 4, tzinfo=UTC).strftime("%Y%m%d")
        image.StudyTime = image.SeriesTime = image.AcquisitionTime = "101500"
        image.RepetitionTime, image.EchoTime = "2000", "3"
        image.Rows, image.Columns = voxels.shape[1], voxels.shape[0]
        image.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"]
        image.SliceThickness = image.SpacingBetweenSlices = f"{spacing[2]:.10g}"
        image.ImageOrientationPatient = [f"{value:.12f}" for value in (*directions[:, 0], *directions[:, 1])]
        image.ImagePositionPatient = [f"{value:.10f}" for value in (lps @ [0, 0, k, 1])[:3]]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.PixelData = np.ascontiguousarray(voxels[:, :, k].T, "<i2").tobytes()
        image.file_meta = FileMetaDataset()
        image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = (
            image.SOPClassUID,
            image.SOPInstanceUID,
        )
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.save_as(folder / f"IM{number:02}{k:04}", enforce_file_format=True)
