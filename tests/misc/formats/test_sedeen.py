"""Sedeen sessions: the real one reads, ours are built like it, and nuclei come back to the pixel."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from misc.formats.nuclei_json import iter_json, write_json
from misc.formats.sedeen import (
    LAB_PENS,
    NOT_NUCLEI,
    RANK_PENS,
    Graphic,
    box_graphics,
    nuclei_graphics,
    read_session,
    write_session,
)
from misc.nuclei import Nuclei
from misc.type_info import UNTYPED

TYPES = {None: UNTYPED, 1: ("negative", (255, 0, 0)), 2: ('"weak" & <new>', (0, 128, 255))}
SQUARE = np.array([[10, 20], [14, 20], [14, 26], [10, 26]])


@pytest.fixture
def real_path(shared):
    return shared / "data" / "annotations" / "TUPAC-TE-234.session.xml"


def nuclei(types=(1, 2)) -> Nuclei:
    contours = [SQUARE, SQUARE[:3] + 1000]
    boxes = [[c.min(axis=0)[::-1], c.max(axis=0)[::-1] + 1] for c in contours]
    return Nuclei.from_contours(
        [4, 9], boxes, [c.mean(axis=0) for c in contours], contours, types=types and np.array(types, np.int32)
    )


def test_real_session(real_path):
    assert real_path.read_bytes().startswith(b"\xef\xbb\xbf")  # byte-order mark
    session = read_session(real_path)
    assert (session.image_name, session.width, session.height) == ("TUPAC-TE-234.svs", 27818, 31316)
    assert session.pixel_size_um == (0.252, 0.252)
    assert [g.type for g in session.graphics] == [
        *("polygon", "rectangle", "ellipse", "polygon", "polyline", "text", "point", "ruler", "arrow")
    ]
    assert {g.type for g in session.graphics if not g.may_be_nucleus} == NOT_NUCLEI
    first = session.graphics[0]
    assert (first.name, first.description, first.pen_colour) == ("Region 0", "test 0", "#00ff00ff")
    assert first.points_xy[:2].tolist() == [[5493, 23178], [4757, 25322]]
    assert [len(g.points_xy) for g in session.graphics] == [5, 4, 4, 84, 53, 4, 3, 2, 2]


def test_written_like_the_real_session_element_by_element(real_path, tmp_path):
    session = read_session(real_path)
    path = tmp_path / "a.session.xml"
    count = write_session(
        path, session.image_name, session.width, session.height, session.pixel_size_um, session.graphics
    )
    assert count == 9
    ours, real = ElementTree.parse(path).getroot(), ElementTree.parse(real_path).getroot()
    # fonts are the user's, and text has a fill; nothing else may differ
    for graphic in real.iter("graphic"):
        graphic.find("font").text = "Arial;12"
        for fill in graphic.findall("fill"):
            graphic.remove(fill)
    flat = lambda root: [(e.tag, e.attrib, (e.text or "").strip()) for e in root.iter()]  # noqa: E731
    assert flat(ours) == flat(real)
    assert read_session(path).graphics[3].points_xy.tolist() == session.graphics[3].points_xy.tolist()


def test_p46_size_pixel_size_and_name_are_the_slides(tmp_path):
    path = tmp_path / "a.session.xml"
    write_session(path, "TCGA-1.2 & <ü>.svs", 300, 200, (0.25, 0.5), [])
    session = read_session(path)
    assert (session.image_name, session.width, session.height) == ("TCGA-1.2 & <ü>.svs", 300, 200)
    assert session.pixel_size_um == (0.25, 0.5)
    assert session.graphics == []
    assert "<dimensions>300,200</dimensions>" in path.read_text(encoding="utf-8")
    assert ElementTree.parse(path).findtext("image/transform/center") == "37.500000,50.000000"  # um
    for size, pixel in (((0, 5), 0.25), ((5, -1), 0.25), ((5, 5), 0.0), ((5, 5), float("nan"))):
        with pytest.raises(ValueError, match="positive"):
            write_session(path, "a.svs", *size, pixel, [])


def test_nuclei_come_back_to_the_pixel(tmp_path):
    write_json(tmp_path / "a.json", nuclei())
    parts = iter_json(tmp_path / "a.json")
    assert write_session(tmp_path / "a.session.xml", "a.svs", 2000, 2000, 0.25, nuclei_graphics(parts, TYPES)) == 2
    found = read_session(tmp_path / "a.session.xml").graphics
    assert [g.type for g in found] == ["polygon", "polygon"]
    assert [g.name for g in found] == ["Region 0", "Region 1"]
    assert [g.description for g in found] == ["negative", '"weak" & <new>']
    assert [g.pen_colour for g in found] == ["#ff0000ff", "#0080ffff"]
    for index, graphic in enumerate(found):
        np.testing.assert_array_equal(graphic.points_xy, nuclei().contour(index))


def test_real_nuclei_come_back_as_the_same_instances(kumar, tmp_path):
    import cv2
    from scipy.io import loadmat
    from scipy.ndimage import find_objects

    path = kumar / "Test_same" / "Labels" / "TCGA-B0-5710-01Z-00-DX1.mat"
    inst_map = loadmat(path)["inst_map"][:400, :400]
    contours, ids = [], []
    for inst, box in enumerate(find_objects(inst_map), start=1):
        if box is not None:
            mask = (inst_map[box] == inst).astype(np.uint8)
            contour = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0][0].reshape(-1, 2)
            if len(contour) >= 3:
                contours.append(contour + np.array([box[1].start, box[0].start], np.int32))
                ids.append(inst)
    assert len(ids) > 30
    zeros = np.zeros((len(ids), 2))
    real = Nuclei.from_contours(ids, np.zeros((len(ids), 2, 2)), zeros, contours)
    write_session(tmp_path / "a.session.xml", "a.png", 400, 400, 0.25, nuclei_graphics(real, TYPES))
    back = [g.points_xy for g in read_session(tmp_path / "a.session.xml").graphics]
    painted = [np.zeros((400, 400), np.int32) for _ in range(2)]
    for canvas, polygons in zip(painted, (contours, back), strict=True):
        for inst, polygon in zip(ids, polygons, strict=True):
            cv2.fillPoly(canvas, [polygon.astype(np.int32)], inst)
    np.testing.assert_array_equal(*painted)
    assert len(np.unique(painted[1])) == len(ids) + 1


def test_level_0_and_pens():
    graphics = list(nuclei_graphics(nuclei(), TYPES, scale=2.0, pens=LAB_PENS))
    assert [g.pen_colour for g in graphics] == ["#ff0000ff", "#0000ffff"]
    assert graphics[0].points_xy[0].tolist() == [20.5, 40.5]  # the centre of pixel (10, 20), twice as fine
    untyped = list(nuclei_graphics(nuclei(types=None), TYPES))
    assert {(g.pen_colour, g.description) for g in untyped} == {("#00e600ff", "nucleus")}
    with pytest.raises(ValueError, match="types 7"):
        list(nuclei_graphics(nuclei((1, 7)), TYPES))


def test_hot_spots_are_ranked_rectangles():
    boxes = np.array([[0, 10, 100, 60]] + [[5, 5, 6, 6]] * 7)
    graphics = list(box_graphics(boxes))
    assert graphics[0].type == "rectangle"
    assert graphics[0].points_xy.tolist() == [[0, 10], [100, 10], [100, 60], [0, 60]]
    assert [g.description for g in graphics] == [f"top{rank}" for rank in range(1, 9)]
    assert [g.pen_colour for g in graphics] == [*RANK_PENS, RANK_PENS[-1], RANK_PENS[-1]]
    assert list(box_graphics(np.zeros((0, 4)))) == []


def test_ellipse_outline():
    corners = np.array([[0.0, 0], [20, 0], [20, 10], [0, 10]])
    outline = Graphic("ellipse", corners).outline_xy()
    np.testing.assert_allclose(((outline - [10, 5]) ** 2 / [100, 25]).sum(axis=1), 1)
    assert Graphic("rectangle", corners).outline_xy().tolist() == corners.tolist()


def session_text(
    overlays: str, head: str = "<dimensions>9,8</dimensions><pixel-size units='um'>1,2</pixel-size>"
) -> str:
    return f"<session><image identifier='a.svs'>{head}<overlays>{overlays}</overlays></image></session>"


def test_what_other_writers_leave_out(tmp_path):
    path = tmp_path / "a.session.xml"
    one = "<graphic type='Polygon'><point-list><point>1.5,2</point></point-list></graphic>"
    path.write_text(session_text(one))
    (graphic,) = read_session(path).graphics
    assert (graphic.type, graphic.pen_colour, graphic.name) == ("polygon", "", "")
    assert graphic.points_xy.tolist() == [[1.5, 2]]
    assert not graphic.may_be_nucleus
    path.write_text(session_text("<graphic type='polygon'/>", head="<dimensions>9,8</dimensions>"))
    session = read_session(path)
    assert session.graphics[0].points_xy.shape == (0, 2)
    assert session.pixel_size_um is None


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><session>&b;</session>'
EXTERNAL = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><session>&a;</session>'


def test_p32_bombs_and_broken_files_are_refused_in_one_line(tmp_path, subtests):
    cases = [
        (BOMB, "refused"),
        (EXTERNAL, "refused"),
        ("<session><image>", "broken XML"),
        ("", "broken XML"),
        ("<ASAP_Annotations/>", "<ASAP_Annotations>, not <session>"),
        ("<session/>", "no <image>"),
        (session_text("", head=""), "dimensions"),
        (
            session_text("<graphic type='p' name='R 1'><point-list><point>1;2</point></point-list></graphic>"),
            r"graphic 0 \('R 1'\): <point> should be \"x,y\", but is '1;2'",
        ),
        (session_text("<graphic><point-list><point>nan,2</point></point-list></graphic>"), "not finite"),
    ]
    for text, reason in cases:
        with subtests.test(text=text, reason=reason):
            path = tmp_path / "a.session.xml"
            path.write_text(text)
            with pytest.raises(ValueError, match=reason) as error:
                read_session(path)
            assert str(error.value).startswith(str(path))
            assert "\n" not in str(error.value)


def test_missing_session(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_session(tmp_path / "a.session.xml")
