"""Scores of typed nuclei on two images small enough to compute on paper.

On random maps (12 images, 5 types) mPQ and bPQ are those of the code published with PanNuke, mPQ+ and R2 those of
CoNIC's, to the tenth digit.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.io

from metrics.folders import score_types
from metrics.label_lists import has_types
from metrics.typed import TypedCounts, determination, image_pq, panoptic_counts, score_typed, summed_pq
from misc.formats.labels import TYPES_KEY, types_text

SIDE_PX = 24


def write(path, nuclei: list[tuple[int, int, int, int, int]], type_map: bool) -> None:
    """Write rectangles (type, top, left, height, width) as a label, or as a prediction's lists."""
    inst_map, types = np.zeros((2, SIDE_PX, SIDE_PX), np.int32)
    lists = []
    for number, (type_id, top, left, height, width) in enumerate(nuclei, 1):
        inst_map[top : top + height, left : left + width] = 3 * number  # with gaps
        types[top : top + height, left : left + width] = type_id
        lists.append((3 * number, type_id, left + (width - 1) / 2, top + (height - 1) / 2))
    lists = np.array(lists, np.float64).reshape(-1, 4)
    content = {
        "inst_map": inst_map,
        "inst_centroid": lists[:, 2:],
        "inst_type": lists[:, 1:2],
        "inst_uid": lists[:, :1],
    }
    if type_map:
        content = {"inst_map": inst_map, "type_map": types}
    path.parent.mkdir(exist_ok=True)
    scipy.io.savemat(path, content)


@pytest.fixture
def folders(tmp_path):
    """In image a one nucleus is cut short, one has the wrong type, one is invented; image b is perfect."""
    pred, true = tmp_path / "pred", tmp_path / "true"
    write(true / "a.mat", [(1, 2, 2, 4, 4), (2, 10, 10, 4, 4)], True)
    write(pred / "a.mat", [(1, 2, 2, 4, 3), (1, 10, 10, 4, 4), (2, 18, 2, 2, 2)], False)
    write(true / "b.mat", [(1, 5, 5, 4, 4)], True)
    write(pred / "b.mat", [(1, 5, 5, 4, 4)], False)
    return pred, true


def test_every_score_by_hand(folders):
    counts = score_typed(*folders)
    assert (counts.names, counts.type_ids, counts.failed) == (["a", "b"], [1, 2], {})
    # matched, invented, missed, IoU: of all, of type 1, of type 2
    assert counts.panoptic[0].tolist() == [[2, 1, 0, 1.75], [1, 1, 0, 0.75], [0, 1, 1, 0]]
    assert counts.panoptic[1].tolist() == [[1, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert counts.nuclei.tolist() == [[[1, 1], [2, 1]], [[1, 0], [1, 0]]]
    scores = counts.scores()
    expected = {
        "Fd": 6 / 7,  # three matched, one invented
        "Fc": (2 * 2 / (2 * 2 + 1) + 0) / 2,  # of the three matched, two are of type 1, the third is taken for it
        "F1 1": 2 * 2 / (2 * 2 + 2 * 1),  # two right, one of type 2 taken for it
        "F1 2": 0,
        # image a: type 1 has 1 / 1.5 * 0.75, type 2 has 0; image b: type 1 has 1, type 2 is not there
        "mPQ": ((0.5 + 0) / 2 + 1) / 2,
        "bPQ": (2 / 2.5 * 1.75 / 2 + 1) / 2,
        "mPQ+": (2 / 2.5 * 1.75 / 2 + 0) / 2,
        "R2": 1,  # of type 2, one and none; type 1 is there once in both images, which says nothing
    }
    assert scores == pytest.approx(expected, abs=1e-5)
    together = score_types(*folders)
    assert [scores["Fd"], scores["F1 1"], scores["F1 2"]] == together.values[[0, 2, 3]].tolist()


def test_a_resample_of_images_is_scored_alone(folders):
    counts = score_typed(*folders)
    perfect = counts.scores(np.array([1, 1]))
    assert perfect["bPQ"] == pytest.approx(1, abs=1e-5)
    assert perfect["Fd"] == 1
    assert np.isnan(perfect["F1 2"])
    assert np.isnan(perfect["R2"])
    twice = TypedCounts.joined([counts, counts])
    assert twice.names == ["a", "b"] * 2
    assert twice.scores() == pytest.approx(counts.scores())
    with_more = score_typed(*folders, type_ids=[1, 2, 3])  # a type that is nowhere
    assert np.isnan(with_more.scores()["F1 3"])
    assert with_more.scores()["mPQ+"] == counts.scores()["mPQ+"]


def test_types_are_merged_before_scoring(folders):
    pred, true = folders
    write(true / "a.mat", [(1, 2, 2, 4, 4), (7, 10, 10, 4, 4)], True)
    write(pred / "a.mat", [(1, 2, 2, 4, 4), (4, 10, 10, 4, 4)], False)
    counts = score_typed(pred, true, merge="consep")
    assert counts.type_ids == [1, 4]
    assert counts.scores()["mPQ+"] == pytest.approx(1, abs=1e-5)
    assert score_typed(pred, true).scores()["mPQ+"] == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(ValueError, match="unknown merge `lizard`"):
        score_typed(pred, true, merge="lizard")


def test_types_are_merged_by_name_from_a_json_file_and_truth_may_have_lists_alone(folders, tmp_path):
    pred, true = folders
    write(true / "a.mat", [(1, 2, 2, 4, 4), (7, 10, 10, 4, 4)], False)
    write(pred / "a.mat", [(1, 2, 2, 4, 4), (2, 10, 10, 4, 4)], False)
    content = scipy.io.loadmat(pred / "a.mat")
    names = types_text({1: ("round", (0, 0, 0)), 2: ("long", (0, 0, 0))})
    scipy.io.savemat(pred / "a.mat", {**{k: v for k, v in content.items() if k[0] != "_"}, TYPES_KEY: names})
    merge = tmp_path / "merge.json"
    merge.write_text('{"long": [7]}')
    counts = score_typed(pred, true, merge=str(merge))
    assert (counts.type_ids, counts.failed) == ([1, 2], {})
    assert counts.scores()["mPQ+"] == pytest.approx(1, abs=1e-5)


def test_p12_images_without_nuclei_are_left_out_of_means(folders):
    pred, true = folders
    write(true / "c.mat", [], True)
    write(pred / "c.mat", [], False)
    scores = score_typed(pred, true).scores()
    assert scores["bPQ"] == pytest.approx(0.85, abs=1e-5)
    assert scores["mPQ"] == pytest.approx(0.625, abs=1e-5)
    write(pred / "c.mat", [(1, 5, 5, 4, 4)], False)  # invented where nothing is: PanNuke leaves it out, CoNIC does not
    scores = score_typed(pred, true).scores()
    assert scores["bPQ"] == pytest.approx(0.85, abs=1e-5)
    assert scores["mPQ+"] == pytest.approx((2 / 3 * 1.75 / 2) / 2, abs=1e-5)


def test_a_file_that_cannot_be_scored_is_reported(folders, tmp_path):
    pred, true = folders
    (true / "b.mat").write_bytes(b"no label")
    write(pred / "lone.mat", [], False)
    counts = score_typed(pred, true)
    assert counts.names == ["a"]
    assert set(counts.failed) == {"b", "lone"}


def test_parts_on_their_own():
    true, pred = np.zeros((2, 10, 10), np.int32)
    true[:4, :4], pred[:4, 2:6] = 1, 1  # 8 of 24 px shared
    assert panoptic_counts(true, pred) == (0, 1, 1, 0.0)
    assert np.isnan(image_pq(np.array([0, 3, 0, 0.0])))
    assert summed_pq(np.array([[[1, 0, 0, 0.8]], [[1, 0, 2, 0.6]]])) == pytest.approx(2 / 3 * 0.7, abs=1e-5)
    np.testing.assert_allclose(determination(np.array([[1, 2], [3, 2]]), np.array([[1, 0], [2, 9]])), [0.5, np.nan])


def test_labels_with_and_without_types(folders, kumar):
    assert has_types(folders[1] / "a.mat")
    assert has_types(folders[0] / "a.mat")
    assert not has_types(next((kumar / "Test_same" / "Labels").glob("*.mat")))
