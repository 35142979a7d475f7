"""Presets of markers: categories at their limits, what may be changed, and what is not scored."""

from __future__ import annotations

import pytest

from misc.ihc.markers import CIRCLE, MARKERS, describe, marker


def test_categories_at_their_limits_and_what_is_said_of_them(subtests):
    """Names as the guidelines have them; which side a limit belongs to differs from rule to rule."""
    for name, rule, shares in (
        ("er", 0, {0.0: "negative", 0.0099: "negative", 0.01: "low positive", 0.10: "low positive", 0.101: "positive"}),
        ("pr", 0, {0.005: "negative", 0.05: "low positive", 0.5: "positive"}),
        ("ki67", 0, {0.05: "low", 0.051: "intermediate", 0.299: "intermediate", 0.30: "high"}),
        ("ki67", 1, {0.02: "G1", 0.0299: "G1", 0.03: "G2", 0.20: "G2", 0.201: "G3"}),
    ):
        for share, wanted in shares.items():
            with subtests.test(name=name, share=share):
                assert MARKERS[name].cutoffs[rule].category(share).split(" (")[0] == wanted
    assert MARKERS["er"].cutoffs[0].category(float("nan")) == ""
    for one in MARKERS.values():
        text = "\n".join(describe(one))
        assert f"at least {one.min_nuclei} nuclei" in text
        assert all(rule.source in text for rule in one.cutoffs)


def test_a_preset_can_be_changed_and_says_what_makes_no_sense(subtests):
    changed = marker("Ki-67", field_mm2=1.0, shape=CIRCLE, min_nuclei=None)
    assert changed.side_um == pytest.approx(1128.379, abs=1e-3)
    assert changed.min_nuclei == MARKERS["ki67"].min_nuclei
    assert MARKERS["ki67"].side_um == 500
    for changes, words in (
        ({"field_mm2": 0}, "hotspot_field_mm2"),
        ({"shape": "hexagon"}, "square or circle"),
        ({"ranked_by": "luck"}, "index or positive"),
        ({"min_nuclei": 0}, "min_nuclei"),
        ({"thresholds": (0.3, 0.2, 0.5)}, "three rising"),
    ):
        with subtests.test(changes=changes), pytest.raises(ValueError, match=words):
            marker("er", **changes)


def test_markers_of_membranes_are_not_scored(subtests):
    for name in ("HER2", "PD-L1", "pdl1", "her-2"):
        with subtests.test(name=name), pytest.raises(ValueError, match="membranes, which this tool does not find"):
            marker(name)
    with pytest.raises(ValueError, match="there are ki67, er, pr, generic"):
        marker("p53")
