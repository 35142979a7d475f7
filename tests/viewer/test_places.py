"""Hot spots and regions from the files beside the results."""

from __future__ import annotations

import gzip
import json

from viewer.places import find_places

CSV = """slide,rank,x0_px,y0_px,x1_px,y1_px,nuclei,positive_share
a,1,100,200,300,500,42,0.414
b,1,0,0,9,9,1,1
a,2,0,0,50,50,7,
"""


def annotation(ring, kind="annotation", **properties) -> dict:
    geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": kind, **properties}}


def test_hot_spots_and_regions_are_found_beside_the_results(tmp_path):
    (tmp_path / "heat").mkdir()
    (tmp_path / "heat" / "hotspots.csv").write_text(CSV)
    box = [[100, 200], [300, 200], [300, 500], [100, 500]]
    features = [
        annotation([[0, 0], [40, 0], [20, 30]], classification={"name": "Tumor", "color": [1, 2, 3]}),
        annotation(box, name="the first hot spot again"),
        annotation(box, kind="detection"),
    ]
    (tmp_path / "a_regions.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    (tmp_path / "abc.geojson").write_text(json.dumps(annotation(box)))  # another slide's
    packed = gzip.compress(json.dumps(annotation([[1, 1], [9, 1], [9, 9]])).encode())
    (tmp_path / "heat" / "a.geojson.gz").write_bytes(packed)
    places, notes = find_places("a", [tmp_path / "heat", tmp_path])
    assert [place.name for place in places] == ["Hot spot 1", "Hot spot 2", "Region 1", "Tumor"]
    assert places[0].box_xywh == (100, 200, 200, 300)
    assert [place.detail for place in places[:2]] == ["42 nuclei, 41 % positive", "7 nuclei"]
    assert places[3].box_xywh == (0, 0, 40, 30)
    assert not notes
    # GeoJSON is counted from the corner of what was scanned
    assert find_places("a", [tmp_path], origin_xy=(1000, 50))[0][0].box_xywh == (1000, 50, 40, 30)


def test_broken_files_are_said_and_passed_over(tmp_path):
    (tmp_path / "hotspots.csv").write_text("name,rank\na,1\n")
    (tmp_path / "a.geojson").write_text(
        '{"features": [{"geometry": null, "properties": {"objectType": "annotation"}}]}'
    )
    (tmp_path / "a-b.geojson").write_text("{")
    places, notes = find_places("a", [tmp_path])
    assert not places
    assert len(notes) == 3
