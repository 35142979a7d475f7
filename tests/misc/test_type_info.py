"""`type_info.json` is the one place for names and colours."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stubs import disc_labels

from misc.formats.nuclei_json import types_from_header, types_to_header
from misc.formats.qupath import qupath_colour, to_qupath, write_geojson
from misc.formats.sedeen import nuclei_graphics
from misc.formats.type_mapping import TypeMapping
from misc.type_info import default_type_info, load_type_info
from misc.viz_utils import visualize_instances_dict
from models.hovernet.post_proc import measure


@pytest.fixture
def type_info(tmp_path):
    (tmp_path / "types.json").write_text('{"0": ["none", [1, 2, 3]], "1": ["odd", [17, 201, 93]]}')
    return load_type_info(tmp_path / "types.json", 2)


def test_p47_a_colour_changed_there_changes_everywhere(type_info, tmp_path):
    from dataclasses import replace

    nuclei = measure(disc_labels((80, 80)))
    nuclei = replace(nuclei, types=np.ones(len(nuclei), np.int32), type_prob=np.ones(len(nuclei)))
    drawn = visualize_instances_dict(np.zeros((80, 80, 3), np.uint8), nuclei.to_dict(), type_colour=type_info)
    assert {tuple(rgb) for rgb in drawn.reshape(-1, 3).tolist()} == {(0, 0, 0), (17, 201, 93)}
    write_geojson(tmp_path / "a.geojson", nuclei, type_info)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    kinds = {json.dumps(feature["properties"]["classification"]) for feature in features}
    assert [json.loads(kind) for kind in kinds] == [{"name": "odd", "color": [17, 201, 93]}]
    to_qupath(tmp_path / "a.tsv", nuclei.centroids_xy, nuclei.types, type_info)
    assert f"\t{qupath_colour((17, 201, 93))}" in (tmp_path / "a.tsv").read_text()
    assert {graphic.pen_colour for graphic in nuclei_graphics(nuclei, type_info)} == {"#11c95dff"}
    assert types_from_header({"types": types_to_header(type_info)})[1] == ("odd", (17, 201, 93))
    assert TypeMapping.of_type_info(type_info).types["#11c95d"] == 1


def test_p30_the_default_palette_is_readable():
    info = default_type_info(6)
    colours = [np.array(rgb) for key, (_, rgb) in info.items() if key]
    assert all(type(value) is int and 0 <= value <= 255 for _, rgb in info.values() for value in rgb)
    assert min(int(c.max()) for c in colours) > 150  # none is near black
    assert min(np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]) > 80


def test_broken_files_are_named(tmp_path, subtests):
    cases = [
        "[]",
        '{"1": ["a", [1, 2]]}',
        '{"1": ["a", [1, 2, 256]]}',
        '{"x": ["a", [1, 2, 3]]}',
        '{"-1": ["a", [1, 2, 3]]}',
    ]
    for text in cases:
        with subtests.test(text=text):
            (tmp_path / "types.json").write_text(text)
            with pytest.raises(ValueError, match=r"types\.json: expected"):
                load_type_info(tmp_path / "types.json")


def test_missing_types_are_named(tmp_path):
    (tmp_path / "types.json").write_text('{"0": ["a", [1, 2, 3]]}')
    with pytest.raises(ValueError, match=r"lacks \[1, 2\]"):
        load_type_info(tmp_path / "types.json", 3)
