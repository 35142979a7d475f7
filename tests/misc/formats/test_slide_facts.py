"""What header and image say of a slide, and who goes before whom."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from misc.formats.slide_facts import slide_facts
from misc.slides.image import SlideImage

PATH = Path("a.json")


def image(mag=None, mpp_xy=None) -> SlideImage:
    return SlideImage("a.svs", 100, 90, mpp_xy, mag, lambda *_: None, lambda: None)


def test_the_scale_in_the_order_of_who_says_it(subtests):
    cases = [
        ({"mag": 20, "slide": {"scale": 3.0}}, image(40.0), 4.0, 4.0),
        ({"mag": 20, "slide": {"scale": 3.0}}, image(40.0), None, 3.0),
        ({"mag": 10}, image(40.0, (0.5, 0.5)), None, 4.0),
        ({"mag": 20}, image(None, (0.24, 0.26)), None, 2.0),
        ({"mag": 20}, image(), None, 1.0),
        ({"mag": 20}, None, None, 1.0),
        ({"mag": None}, image(40.0), None, 1.0),
        ({}, None, 2.0, 2.0),
    ]
    for header, opened, option, expected in cases:
        with subtests.test(header=header, opened=opened, option=option, expected=expected):
            assert slide_facts(PATH, header, opened, option).scale == pytest.approx(expected)


def test_what_was_scanned_is_what_the_slide_says_else_the_header():
    header = {"slide": {"bounds": [5, 6, 70, 80]}}
    assert slide_facts(PATH, header).bounds_xywh == (5, 6, 70, 80)
    assert slide_facts(PATH, header).origin_xy == (5, 6)
    opened = dataclasses.replace(image(), bounds_xywh=(1, 2, 30, 40))
    assert slide_facts(PATH, {}, opened).origin_xy == (1, 2)
    assert slide_facts(PATH, header, image()).origin_xy == (5, 6)
    assert slide_facts(PATH, {}).origin_xy == (0, 0)


def test_notes_say_what_was_found_or_what_is_not_known():
    assert slide_facts(PATH, {"mag": 20}, image(40.0)).notes == (
        "found at 20x in a slide of 40x: coordinates are multiplied by 2",
    )
    assert "in a slide of 0.25 um/px" in slide_facts(PATH, {"mag": 20}, image(None, (0.25, 0.25))).notes[0]
    for opened in (None, image()):
        (note,) = slide_facts(PATH, {"mag": 20}, opened).notes
        assert "assumed to be level-0 px; give --scale" in note
    for header, option in (({"mag": 40}, None), ({"mag": 20}, 2.0), ({}, None)):
        assert slide_facts(PATH, header, image(40.0), option).notes == ()


def test_size_name_and_pixel_size():
    slide = {"name": "b.svs", "width": 100, "height": 90, "mpp": 0.3}
    facts = slide_facts(PATH, {"slide": slide, "mpp": 0.5})
    assert (facts.name, facts.width, facts.height, facts.mpp_xy) == ("b.svs", 100, 90, (0.3, 0.3))
    assert slide_facts(PATH, {"slide": {"scale": 2.0}, "mpp": 0.5}).mpp_xy == (0.25, 0.25)
    assert slide_facts(PATH, {"slide": slide}, image(), mpp=0.7).mpp_xy == (0.7, 0.7)
    assert slide_facts(PATH, {"slide": slide}, image()).name == "a.svs"
    nothing = slide_facts(PATH, {"slide": {"width": 7}})
    assert (nothing.name, nothing.width, nothing.height, nothing.mpp_xy) == ("", 0, 0, None)


def test_broken_headers_are_named_in_one_line(subtests):
    cases = [
        ({"slide": 3}, '"slide" is no object: 3'),
        ({"slide": {"width": "x"}}, '"slide.width" is a positive number or null'),
        ({"slide": {"width": 1e300}}, "from 1 to 2147483647, got 1e.300"),
        ({"slide": {"height": 0.5}}, "from 1 to"),
        ({"slide": {"scale": -1}}, '"slide.scale" is a positive number'),
        ({"slide": {"bounds": [1, 2, 3]}}, '"slide.bounds" is'),
        ({"slide": {"bounds": [1, 2, 3, 0]}}, '"slide.bounds" is'),
        ({"slide": {"bounds": "all"}}, '"slide.bounds" is'),
        ({"mag": True}, '"mag" is a positive number'),
        ({"mpp": "large"}, '"mpp" is a positive number'),
        ({"slide": {"width": 99, "height": 90}}, "is of a slide of 99 x 90 px, but a.svs has 100 x 90"),
    ]
    for header, message in cases:
        with subtests.test(header=header, message=message):
            with pytest.raises(ValueError, match=message) as error:
                slide_facts(PATH, header, image())
            assert str(error.value).startswith("a.json: ")
            assert len(str(error.value)) < 200
