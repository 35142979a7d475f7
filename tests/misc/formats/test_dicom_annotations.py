"""Microscopy Bulk Simple Annotations: read back by highdicom and pydicom, against the GeoJSON of the same nuclei."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.io import loadmat

import convert_format
from misc.formats import nuclei_table
from misc.formats.nuclei_json import write_json
from models.hovernet.post_proc import measure

SLIDE = {"name": "small_dicom.dcm", "width": 3236, "height": 2638, "scale": 2.0, "mpp": 0.5}
TYPES = {"1": ["tumour", [255, 0, 9]], "2": ["stroma", [0, 9, 255]]}


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")  # the slide's own PatientID
def test_annotations_of_a_dicom_slide(shared, kumar, tmp_path, monkeypatch, capsys):
    highdicom = pytest.importorskip("highdicom", reason="pip install -r requirements-dicom.txt")
    pydicom = pytest.importorskip("pydicom")
    monkeypatch.setattr(nuclei_table, "PIECE_NUCLEI", 50)  # several pieces
    label = loadmat(next((kumar / "Train" / "Labels").glob("*.mat")))["inst_map"][:400, :400].astype(np.int32)
    write_json(tmp_path / "small_dicom.json", measure(label, label % 2 + 1), 20, {"slide": SLIDE, "types": TYPES})
    options = [f"--input={tmp_path / 'small_dicom.json'}", f"--output_dir={tmp_path}"]
    slides = shared / "data" / "slides"
    assert convert_format.main([*options, "--to=dicom", f"--wsi_dir={slides}"]) == 0
    assert convert_format.main([*options, "--to=geojson"]) == 0
    expected: dict[str, list] = {}
    for feature in json.loads((tmp_path / "small_dicom.geojson").read_text())["features"]:
        name = feature["properties"]["classification"]["name"]
        expected.setdefault(name, []).append(np.float32(feature["geometry"]["coordinates"][0][:-1]))

    annotations = highdicom.ann.annread(tmp_path / "small_dicom.ann.dcm")
    slide = pydicom.dcmread(slides / "small_dicom.dcm", stop_before_pixels=True)
    assert annotations.StudyInstanceUID == slide.StudyInstanceUID
    assert annotations.ReferencedImageSequence[0].ReferencedSOPInstanceUID == slide.SOPInstanceUID
    assert (annotations.AnnotationCoordinateType, annotations.PixelOriginInterpretation) == ("2D", "VOLUME")
    groups = {group.label: group for group in annotations.get_annotation_groups()}
    assert groups.keys() == expected.keys()
    for name, rings in expected.items():
        found = groups[name].get_graphic_data(coordinate_type="2D")
        assert groups[name].number_of_annotations == len(found) == len(rings)
        for ring, own in zip(found, rings, strict=True):
            np.testing.assert_array_equal(ring, own)
    assert groups["tumour"].annotated_property_type.value == "84640000"

    other = tmp_path / "other"
    other.mkdir()
    write_json(other / "HE_example.json", measure(label[:90, :90]))
    options = [f"--input={other / 'HE_example.json'}", f"--output_dir={other}", "--to=dicom"]
    for wsi_dir, said in (([], "give --wsi_dir"), ([f"--wsi_dir={slides}"], "HE_example.tif is no DICOM slide")):
        assert convert_format.main([*options, *wsi_dir]) == 1
        assert said in capsys.readouterr().err
    assert not list(other.glob("*.dcm"))
