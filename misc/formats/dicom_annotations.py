"""Nuclei as DICOM Microscopy Bulk Simple Annotations (`.dcm`), for the DICOM slide that they were found in.

DICOM PS3.3, C.37.1: a group of polygons for each type, with its name; all are nuclei (SNOMED CT 84640000).
Points are in px of the slide's level 0 and count from the corner of the first pixel, as QuPath's do; rings are open.
Outlines go to temporary files, and pydicom copies them into the result, so that they never fill the memory.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from misc.extras import require
from misc.files import atomic_path
from misc.formats.nuclei_table import NucleiTable
from misc.formats.qupath import valid_rings
from misc.slides.dicom import read_instance, series_in, series_of
from misc.type_info import RGB

_MAKER, _VERSION = "HoVer-Net toolkit", "1"
# Attributes that a slide must have (empty if unknown) and the result copies; highdicom only checks the last one.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "FrameOfReferenceUID"),
)
_DOT = np.array([[0, 0], [1, 0], [1, 1]], np.float32)


@dataclass
class _Group:
    """Outlines of one type: files of points and of where each outline starts in them, counted from 1."""

    points: BinaryIO = field(default_factory=tempfile.TemporaryFile)
    starts: BinaryIO = field(default_factory=tempfile.TemporaryFile)
    count: int = 0
    values: int = 0

    def add(self, rings: list[np.ndarray]) -> None:
        lengths = np.array([2 * len(ring) for ring in rings])
        starts = self.values + 1 + np.cumsum(lengths) - lengths
        self.points.write(np.concatenate(rings).astype("<f4").tobytes())
        self.starts.write(starts.astype("<u4").tobytes())
        self.count += len(rings)
        self.values += int(lengths.sum())


def write_dicom(path: str | Path, table: NucleiTable, slide: str | Path) -> int:
    """Write the nuclei, a group for each type; their measurements are not written.

    Args:
        path: the file.
        table: the nuclei.
        slide: the DICOM slide: a file of its series, or its folder.

    Returns:
        Number of outlines; nuclei with fewer than three contour points have none and are left out.

    Raises:
        ValueError: the slide is no DICOM slide, there are no nuclei, the types' names lack a type, or highdicom is
            not installed.
    """
    require("highdicom", "dicom")
    level0 = _level0(Path(slide))
    with contextlib.ExitStack() as stack, atomic_path(path) as temporary:
        groups = _collect(table, stack)
        if not groups:
            raise ValueError("there are no nuclei, and DICOM has no annotations without any")
        ordered = sorted(groups, key=lambda type_id: -1 if type_id is None else type_id)
        dataset = _dataset(level0, [(*table.type_info[type_id], groups[type_id]) for type_id in ordered])
        dataset.save_as(temporary, enforce_file_format=True)
    return sum(group.count for group in groups.values())


def _level0(slide: Path) -> Path:
    """Return the file of a slide's largest level."""
    if slide.is_dir():
        found = series_in(slide)
        if len(found) == 1:
            return found[0][0].path
    elif read_instance(slide):
        return series_of(slide)[0]
    raise ValueError(f"{slide.name} is no DICOM slide, and DICOM annotations are of one; convert to another format")


def _collect(table: NucleiTable, stack: contextlib.ExitStack) -> dict[int | None, _Group]:
    groups: dict[int | None, _Group] = {}
    for piece in table.drawn().pieces():
        of_type: dict[int | None, list[np.ndarray]] = {}
        for type_id, ring in zip(table.types_of(piece), valid_rings(piece, table.scale), strict=True):
            of_type.setdefault(type_id, []).append(ring[:-1])
        for type_id, rings in of_type.items():
            if type_id not in groups:
                groups[type_id] = group = _Group()
                stack.enter_context(group.points)
                stack.enter_context(group.starts)
            groups[type_id].add(rings)
    return groups


def _is_valid(element) -> bool:
    """Return whether a date or time is valid; anonymised slides have invalid ones."""
    from pydicom.valuerep import DA, TM

    try:
        {"DA": DA, "TM": TM}.get(element.VR, str)(element.value or None)
    except ValueError:
        return False
    return True


def _dataset(level0: Path, groups: list[tuple[str, RGB, _Group]]):
    """Return annotations by highdicom of a dot for each group, with the groups' files in place of the dot."""
    import highdicom as hd
    import pydicom
    from pydicom.sr.coding import Code

    source = pydicom.dcmread(level0, stop_before_pixels=True)
    for name in _MAY_BE_EMPTY:
        if name not in source or not _is_valid(source[name]):
            setattr(source, name, "")
    algorithm = hd.AlgorithmIdentificationSequence(
        name=_MAKER, family=Code("123110", "DCM", "Artificial Intelligence"), version=_VERSION
    )
    dots = [
        hd.ann.AnnotationGroup(
            number=number,
            uid=hd.UID(),
            label=name,
            annotated_property_category=Code("91723000", "SCT", "Anatomical Structure"),
            annotated_property_type=Code("84640000", "SCT", "Nucleus"),
            graphic_type=hd.ann.GraphicTypeValues.POLYGON,
            graphic_data=[_DOT],
            algorithm_type=hd.ann.AnnotationGroupGenerationTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*rgb),
        )
        for number, (name, rgb, _) in enumerate(groups, start=1)
    ]
    dataset = hd.ann.MicroscopyBulkSimpleAnnotations(
        source_images=[source],
        annotation_coordinate_type=hd.ann.AnnotationCoordinateTypeValues.SCOORD,
        annotation_groups=dots,
        series_instance_uid=hd.UID(),
        series_number=1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=_MAKER,
        software_versions=_VERSION,
        device_serial_number=_VERSION,
    )
    for item, (_, _, group) in zip(dataset.AnnotationGroupSequence, groups, strict=True):
        for handle in (group.points, group.starts):
            handle.seek(0)
        item.NumberOfAnnotations = group.count
        item.PointCoordinatesData = group.points
        item.LongPrimitivePointIndexList = group.starts
    return dataset
