"""A mask as a DICOM segmentation of the series that it was made of, through highdicom."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from textseg.errors import DataError
from textseg.system.files import replacing
from textseg.version import __version__
from textseg.volumes.dicom_series import DicomSeries, in_order
from textseg.volumes.label_tables import Label

SUFFIX = ".dcm"
SERIES_NUMBER = 9001


def require_highdicom() -> None:
    """Raises DataError where the extra `dicom` is not installed."""
    try:
        import_module("highdicom")
    except ImportError as error:
        raise DataError(
            f"A DICOM segmentation needs highdicom ({error}). Install it with: pip install 'textseg[dicom]', or choose "
            "another format, such as --format .nii.gz."
        ) from error


def write_segmentation(
    array: npt.NDArray[Any], labels: Sequence[Label], series: DicomSeries, path: Path, *, model: str
) -> None:
    """Write class indices in file order (slices first) as a binary DICOM segmentation, in one step.

    It belongs to the study and the frame of reference of `series` and refers to each of its slices. Segment numbers are
    the values of `labels`, which run from 1; each has its name, its code and its colour. `model` is who made it. Raises
    DataError where highdicom is not installed or refuses the series.
    """
    require_highdicom()
    hd, pydicom, coding = (import_module(name) for name in ("highdicom", "pydicom", "pydicom.sr.coding"))
    codes = import_module("pydicom.sr.codedict").codes
    kind = codes.DCM.ArtificialIntelligence
    by = hd.AlgorithmIdentificationSequence(name=model[:64], version=__version__, family=kind)
    segments = []
    for label in labels:
        scheme, value, meaning = label.code
        colour = hd.color.CIELabColor.from_rgb(*(round(255 * part) for part in label.colour))
        segments.append(
            hd.seg.SegmentDescription(
                segment_number=label.value,
                segment_label=label.structure.name,
                segmented_property_category=codes.SCT.AnatomicalStructure,
                segmented_property_type=coding.Code(value, scheme, meaning),
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=by,
                display_color=colour,
            )
        )
    files, _ = in_order(series)
    try:
        with warnings.catch_warnings():  # about names of patients, which are as the series has them
            warnings.simplefilter("ignore", UserWarning)
            segmentation = hd.seg.Segmentation(
                source_images=[pydicom.dcmread(file, stop_before_pixels=True) for file in files],
                pixel_array=array.astype(np.uint8, copy=False),
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=hd.UID(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="textseg",
                manufacturer_model_name=model[:64],
                software_versions=__version__,
                device_serial_number="0",
                series_description=f"textseg {model}"[:64],
                content_label="SEGMENTATION",
                omit_empty_frames=bool(array.any()),
            )
        with replacing(path) as temporary:
            segmentation.save_as(temporary)
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise DataError(f"{path} can't be written as a DICOM segmentation: {reason}.") from error
