"""Post-processing against the reference implementation, against a plain version of itself, and on paper.

`golden/post_proc.npz` was made by running the reference implementation's `process` (vqdang/hover_net, commit 67e2ce5,
NumPy 2.4, OpenCV 5.0, scikit-image 0.26, one thread) on two synthetic 88x104 maps of 46 ellipses, stored beside its
results: `network` (blurred, with noise in all channels) and `ramps` (exact distances, many equal values).
"""

from pathlib import Path
from time import thread_time

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.segmentation import watershed

from models.hovernet import edges, flood, post_proc

GOLDEN = Path(__file__).parent / "golden" / "post_proc.npz"


def distances(labels):
    """Horizontal and vertical distance to the centre of each label, scaled to -1..1."""
    hv = np.zeros((*labels.shape, 2), np.float32)
    for label in range(1, labels.max() + 1):
        y, x = np.nonzero(labels == label)
        for axis, place in enumerate((x, y)):
            if len(place):
                away = place - place.mean()
                hv[y, x, axis] = away / max(np.abs(away).max(), 1)
    return hv


def ellipses(shape, count, rng):
    labels = np.zeros(shape, np.int32)
    for label in range(1, count + 1):
        one = np.zeros(shape, np.uint8)
        centre = (int(rng.integers(0, shape[1])), int(rng.integers(0, shape[0])))
        axes = (int(rng.integers(5, 12)), int(rng.integers(4, 8)))
        cv2.ellipse(one, centre, axes, int(rng.integers(0, 180)), 0, 360, 1, -1)
        labels[one > 0] = label
    return labels


def maps_like(kind, shape, rng):
    """(H, W, 4) [type, np, h, v]: as a network gives them, exact, in a few levels, or anything at all."""
    labels = ellipses(shape, max(shape[0] * shape[1] // 250, 2), rng)
    types = rng.integers(0, 4, shape).astype(np.float32)
    noise = lambda size: cv2.GaussianBlur(rng.normal(0, size, shape).astype(np.float32), (7, 7), 0).reshape(shape)  # noqa: E731
    prob, hv = (labels > 0).astype(np.float32), distances(labels)
    if kind == "anything":
        prob, hv = 0.5 + 4 * noise(0.5), np.stack([noise(1.0), noise(1.0)], -1)
    elif kind == "network":
        prob = prob + noise(0.3)
        hv = cv2.GaussianBlur(hv, (5, 5), 0) + np.stack([noise(0.2), noise(0.2)], -1)
    elif kind == "levels":
        hv = np.round(hv * 4) / 4
    return np.dstack([types, prob, hv]).astype(np.float32)


def drop_small(labels, least):
    labels[np.bincount(labels.ravel())[labels] < least] = 0
    return labels


def stretched(plane):
    return cv2.normalize(plane, None, 0, 1, cv2.NORM_MINMAX, cv2.CV_32F)


def plain_segment(prob, h, v):
    """The method step by step on the whole map in double precision, with none of the shortcuts."""
    blob = drop_small(ndimage.label(prob >= 0.5)[0], 10) > 0
    slopes = [stretched(cv2.Sobel(stretched(m), cv2.CV_64F, *axis, ksize=21)) for m, axis in ((h, (1, 0)), (v, (0, 1)))]
    edge = np.where(blob, np.maximum(1 - slopes[0], 1 - slopes[1]).astype(np.float64), 0).clip(0)
    relief = -cv2.GaussianBlur((1.0 - edge) * blob, (3, 3), 0)
    core = ndimage.binary_fill_holes(blob & (edge < 0.4)).astype(np.uint8)
    core = cv2.morphologyEx(core, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    return watershed(relief, markers=drop_small(ndimage.label(core)[0], 10), mask=blob)


def plain_measure(inst_map, types):
    """One comparison of the whole map per nucleus."""
    nuclei = {}
    for label in np.unique(inst_map[inst_map > 0]).tolist():
        y, x = np.nonzero(inst_map == label)
        box = [[y.min(), x.min()], [y.max() + 1, x.max() + 1]]
        cut = (inst_map == label)[box[0][0] : box[1][0], box[0][1] : box[1][1]].astype(np.uint8)
        contour = cv2.findContours(cut, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0][0]
        if len(contour) < 3:
            continue
        m = cv2.moments(cut)
        count = {int(t): int(n) for t, n in zip(*np.unique(types[y, x], return_counts=True), strict=True)}
        ranked = sorted(count, key=lambda t: (-count[t], t))
        best = ranked[1] if ranked[0] == 0 and len(ranked) > 1 else ranked[0]
        nuclei[label] = {
            "bbox": np.array(box),
            "centroid": np.array([m["m10"] / m["m00"] + x.min(), m["m01"] / m["m00"] + y.min()]),
            "contour": contour[:, 0] + [x.min(), y.min()],
            "type": best,
            "type_prob": count[best] / (len(x) + 1e-6),
        }
    return nuclei


def assert_equal_nuclei(ours, theirs):
    assert list(ours) == list(theirs)
    for label, info in theirs.items():
        assert set(ours[label]) == {"bbox", "centroid", "contour", "type", "type_prob"}
        for key, value in info.items():
            assert np.array_equal(ours[label][key], value), (label, key)


@pytest.mark.parametrize("name", ["network", "ramps"])
def test_golden_values_of_the_reference(name):
    with np.load(GOLDEN, allow_pickle=False) as file:
        golden = {key.removeprefix(f"{name}_"): file[key] for key in file.files if key.startswith(f"{name}_")}
    inst_map, nuclei = post_proc.process(golden["maps"].astype(np.float32), nr_types=4, return_centroids=True)
    assert inst_map.dtype == np.int32
    assert np.array_equal(inst_map, golden["inst_map"])
    assert list(nuclei) == golden["ids"].tolist()
    for key, column in (("bbox", "boxes"), ("centroid", "centroids"), ("type", "types"), ("type_prob", "type_probs")):
        assert np.array_equal([info[key] for info in nuclei.values()], golden[column]), key
    assert np.array_equal(np.concatenate([info["contour"] for info in nuclei.values()]), golden["contours"])
    assert [len(info["contour"]) for info in nuclei.values()] == golden["lengths"].tolist()


# sizes around the pieces (256 x 384 px) and the steps (16 px) of the filter
@pytest.mark.parametrize("shape", [(40, 31), (64, 255), (50, 257), (61, 275), (270, 400), (120, 1)])
@pytest.mark.parametrize("kind", ["network", "ramps", "levels", "anything"])
def test_equals_the_plain_version(kind, shape):
    rng = np.random.default_rng(len(kind) + shape[1])
    for _ in range(3):
        maps = maps_like(kind, shape, rng)
        inst_map, nuclei = post_proc.process(maps, nr_types=4)
        assert np.array_equal(inst_map, plain_segment(*np.moveaxis(maps[..., 1:], -1, 0).copy()))
        assert_equal_nuclei(nuclei, plain_measure(inst_map, maps[..., 0].astype(int)))


def test_level_heights_fall_back_to_the_whole_map(monkeypatch):
    calls = []
    monkeypatch.setattr(flood, "flood_all", lambda *args, whole=flood.flood_all: calls.append(1) or whole(*args))
    y, x = np.mgrid[:120, :120]
    maps = np.dstack([np.ones_like(x), x % 24 / 12 - 1, y % 24 / 12 - 1]).astype(np.float32)
    inst_map = post_proc.segment(maps)
    assert calls == [1]
    assert len(np.unique(inst_map)) > 9
    assert np.array_equal(inst_map, plain_segment(*np.moveaxis(maps, -1, 0).copy()))


@pytest.mark.parametrize("axis", [(1, 0), (0, 1)])
@pytest.mark.parametrize("width", [1, 15, 384, 391, 512, 800])
def test_filter_by_pieces_is_the_filter_of_the_whole(axis, width):
    plane = np.random.default_rng(width).random((300, width)).astype(np.float32)
    expected = stretched(cv2.Sobel(stretched(plane), cv2.CV_64F, *axis, ksize=21))
    found = edges._stretched_slope(plane, np.empty_like(plane), np.empty(plane.shape), None, *axis)
    assert np.array_equal(found, expected)


def test_values_of_the_reference_implementation():
    """Whoever edits these numbers no longer gets the results of the reference, and this test says so."""
    assert (post_proc.NP_THRESHOLD, post_proc.MIN_SIZE_PX) == (0.5, 10)
    assert (edges.SOBEL_KSIZE, edges.MARKER_THRESHOLD) == (21, 0.4)
    assert (post_proc.OPENING_KSIZE, post_proc.MIN_MARKER_PX) == (5, 10)
    assert np.float32(edges.MARKER_THRESHOLD) >= edges.MARKER_THRESHOLD  # else edges of this strength differ


@pytest.mark.parametrize("order", ["C", "F"])
def test_components_below_the_smallest_size_are_erased(order):
    mask = np.zeros((6, 12), np.uint8)
    mask[0:2, 0:5] = 1  # 10 px
    mask[0:3, 6:9] = 1  # 9 px
    mask[3, 5], mask[4, 6:10] = 1, 1  # touch by corners only
    layer = post_proc._label(mask.copy(order=order), 10)
    assert np.array_equal(layer.mask, mask * (np.arange(12) < 5) * (np.arange(6) < 2)[:, None])
    assert np.array_equal(layer.labels, layer.mask)
    assert layer.nr_labels == 5
    assert layer.runs.value.tolist() == [1, 1]


def test_holes_are_background_that_does_not_reach_the_border():
    rows = ["111110", "100010", "101011", "111101", "100011", "100111"]
    mask = np.array([[int(c) for c in row] for row in rows], np.uint8)
    filled = np.ones_like(mask)
    filled[0, 5] = filled[1, 5] = 0  # open at the right
    filled[4:, 1:3] = filled[4, 3] = 0  # open at the bottom
    assert np.array_equal(post_proc._fill_holes(mask), filled)


def test_an_island_in_a_hole_belongs_to_the_nucleus_around_it():
    y, x = np.mgrid[:64, :64] - 32
    away = np.hypot(y, x)
    disc = (away < 20).astype(np.int32)
    maps = np.dstack([disc * ((away < 4) | (away > 6)), distances(disc)]).astype(np.float32)
    inst_map, nuclei = post_proc.process(maps, return_centroids=True)
    assert np.array_equal(inst_map, plain_segment(*np.moveaxis(maps, -1, 0).copy()))
    assert np.array_equal(inst_map > 0, maps[..., 0] > 0)
    assert np.unique(inst_map).tolist() == [0, 1]
    expected = plain_measure(inst_map, inst_map)[1]
    assert np.array_equal(nuclei[1]["contour"], expected["contour"])
    assert np.array_equal(nuclei[1]["bbox"], expected["bbox"])


def two_squares():
    """Two nuclei of 20x20 px that touch at column 30, rows 10 to 29."""
    labels = np.zeros((40, 60), np.int32)
    labels[10:30, 10:30], labels[10:30, 30:50] = 1, 2
    return np.dstack([labels, labels > 0, distances(labels)]).astype(np.float32)


def test_two_touching_squares():
    inst_map, nuclei = post_proc.process(two_squares(), nr_types=3)
    assert np.unique(inst_map).tolist() == [0, 1, 2]
    assert (inst_map[10:30, 10:29] == 1).all()
    assert (inst_map[10:30, 31:50] == 2).all()
    assert [info["type"] for info in nuclei.values()] == [1, 2]
    assert nuclei[1]["bbox"][0].tolist() == [10, 10]
    assert nuclei[2]["bbox"][1].tolist() == [30, 50]
    assert all(abs(nuclei[k]["centroid"] - c).max() < 0.6 for k, c in ((1, (19.5, 19.5)), (2, (39.5, 19.5))))


def test_dictionary_only_where_asked_for():
    maps = two_squares()
    assert post_proc.process(maps[..., 1:])[1] is None
    untyped = post_proc.process(maps[..., 1:], return_centroids=True)[1]
    assert [info["type"] for info in untyped.values()] == [None, None]
    assert [info["type_prob"] for info in untyped.values()] == [None, None]
    inst_map, nuclei = post_proc.process_nuclei(maps, 3)
    assert np.array_equal(inst_map, post_proc.segment(maps[..., 1:]))
    assert_equal_nuclei(nuclei.to_dict(), post_proc.process(maps, 3)[1])


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (1, 1), (1, 50), (50, 1), (2, 3), (9, 9), (64, 64)])
@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_p12_maps_without_a_nucleus(shape, prob):
    """Nothing nuclear, or all nuclear with constant distances, which leaves no marker."""
    maps = np.zeros((*shape, 4), np.float32)
    maps[..., 1] = prob
    inst_map, nuclei = post_proc.process(maps, nr_types=5)
    assert inst_map.shape == shape
    assert inst_map.dtype == np.int32
    assert not inst_map.any()
    assert nuclei == {}
    arrays = post_proc.process_nuclei(maps, 5, np.zeros((*shape, 5), np.float32))[1]
    assert arrays.types.shape == (0,)
    assert arrays.class_probs.shape == (0, 5)
    assert post_proc.count_dropped(inst_map, arrays) == 0


def test_a_nucleus_that_fills_the_map():
    """`process` leaves it out as the reference does; the pipeline's form has it."""
    labels = np.ones((40, 40), np.int32)
    maps = np.dstack([labels, labels, distances(labels)]).astype(np.float32)
    inst_map, nuclei = post_proc.process(maps, nr_types=2)
    assert (inst_map == 1).all()
    assert nuclei == {}
    arrays = post_proc.process_nuclei(maps, 2)[1]
    assert arrays.boxes_yx.tolist() == [[[0, 0], [40, 40]]]
    assert arrays.centroids_xy.tolist() == [[19.5, 19.5]]
    assert arrays.contour(0).tolist() == [[0, 0], [0, 39], [39, 39], [39, 0]]


def test_type_and_layout_of_the_input_do_not_matter():
    maps = maps_like("network", (90, 110), np.random.default_rng(5)).astype(np.float16).astype(np.float32)
    maps[8, 8:14, 1] = 1  # at least one component that is too small
    inst_map, nuclei = post_proc.process(maps, nr_types=4)
    assert len(nuclei) > 10
    wide = np.zeros((90, 110, 8), np.float32)
    wide[..., ::2] = maps
    planes = np.ascontiguousarray(np.moveaxis(maps, -1, 0))
    turned = np.ascontiguousarray(maps.transpose(2, 1, 0))
    frozen = maps.copy()
    frozen.setflags(write=False)
    forms = [maps.astype(np.float16), maps.astype(np.float64), wide[..., ::2]]
    forms += [planes.transpose(1, 2, 0), turned.transpose(2, 1, 0), frozen]
    for form in forms:
        before = form.copy()
        found = post_proc.process(form, nr_types=4)
        assert np.array_equal(found[0], inst_map)
        assert_equal_nuclei(found[1], nuclei)
        assert np.array_equal(form, before)


def test_number_of_threads_does_not_matter():
    maps = maps_like("network", (300, 300), np.random.default_rng(6))
    threads = cv2.getNumThreads()
    try:
        found = []
        for number in (1, 4):
            cv2.setNumThreads(number)
            found.append(post_proc.segment(maps[..., 1:]))
    finally:
        cv2.setNumThreads(threads)
    assert found[0].any()
    assert np.array_equal(*found)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"nr_types=5 needs maps \(H, W, 4\) .* got shape \(8, 8, 3\)"):
        post_proc.process(np.zeros((8, 8, 3)), nr_types=5)
    with pytest.raises(ValueError, match=r"nr_types=None needs maps \(H, W, 3\)"):
        post_proc.process(np.zeros((8, 8, 4)))
    for bad in (np.nan, np.inf):
        maps = two_squares()
        maps[3, 4, 3] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            post_proc.process(maps, nr_types=3)
    with pytest.raises(ValueError, match="does not fit"):
        post_proc.measure(np.zeros((4, 4), np.int32), np.zeros((4, 5)))
    with pytest.raises(ValueError, match=">= 0, got -1"):
        post_proc.measure(np.zeros((4, 4), np.int32), np.full((4, 4), -1))


@pytest.mark.parametrize(
    ("pixels", "expected", "share"),
    [
        ([1, 1, 2, 3, 3, 3, 0, 0, 0], 3, 3 / 9),  # as many of 0: background is never preferred
        ([0, 0, 0, 0, 0, 0, 0, 0, 2], 2, 1 / 9),
        ([0] * 9, 0, 1.0),
        ([2, 2, 2, 2, 1, 1, 1, 1, 0], 1, 4 / 9),  # the smaller number wins
        ([0, 0, 0, 0, 0, 3, 3, 2, 2], 2, 2 / 9),
    ],
)
def test_type_of_a_nucleus(pixels, expected, share):
    inst_map, types = np.zeros((5, 5), np.int32), np.full((5, 5), 3)
    inst_map[1:4, 1:4] = 6
    types[1:4, 1:4] = np.reshape(pixels, (3, 3))
    nuclei = post_proc.measure(inst_map, types, nr_types=4)
    assert nuclei.ids.tolist() == [6]
    assert nuclei.types.tolist() == [expected]
    assert nuclei.type_prob[0] == pytest.approx(share, abs=1e-6)
    # the numbers alone decide, not the type of the array
    assert post_proc.measure(inst_map, types.astype(np.float32)).types.tolist() == [expected]


def test_contours_are_those_of_each_nucleus_alone():
    """Touching ones, with holes, in pieces, at the border: any map of labels."""
    rng = np.random.default_rng(11)
    count = 0
    for smooth in (0.4, 0.8, 1.5, 3.0) * 3:
        values = cv2.GaussianBlur(rng.normal(0, 1, (70, 90, 4)), (0, 0), smooth)
        inst_map = values.argmax(axis=2).astype(np.int32) + 5 * (np.arange(90) // 30)
        inst_map[values.max(axis=2) < np.quantile(values.max(axis=2), 0.2)] = 0
        found = post_proc.measure(inst_map, inst_map).to_dict()
        assert_equal_nuclei(found, plain_measure(inst_map, inst_map))
        count += len(found)
    assert count > 60


def test_dots_and_lines_are_dropped_and_counted():
    inst_map = np.zeros((12, 12), np.int32)
    inst_map[0, 0] = 3  # a dot
    inst_map[2, 1:9] = 5  # a line
    inst_map[4:6, 0:3] = 9
    inst_map[7:12, 7:12] = 11
    inst_map[9, 9] = 0  # a hole does not show in the contour
    types = np.where(inst_map == 9, 2, 1)
    nuclei = post_proc.measure(inst_map, types)
    assert nuclei.ids.tolist() == [9, 11]
    assert nuclei.types.tolist() == [2, 1]
    assert nuclei.contour(0).tolist() == [[0, 4], [0, 5], [2, 5], [2, 4]]
    assert nuclei.contour(1).tolist() == [[7, 7], [7, 11], [11, 11], [11, 7]]
    assert nuclei.centroids_xy.tolist() == [[1.0, 4.5], [9.0, 9.0]]
    assert post_proc.count_dropped(inst_map, nuclei) == 2


def test_class_probs_are_means_over_the_nucleus():
    inst_map = np.zeros((4, 6), np.int32)
    inst_map[1:3, 1:3], inst_map[0:2, 4:6] = 1, 2
    probs = np.zeros((4, 6, 2), np.float16)
    probs[1:3, 1:3, 0] = [[1.0, 0.5], [0.25, 0.25]]
    probs[..., 1] = 1 - probs[..., 0]
    nuclei = post_proc.measure(inst_map, class_probs_map=probs)
    assert nuclei.types is None
    assert nuclei.class_probs.tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert nuclei.class_probs.dtype == np.float32


def test_real_labels_measured_as_the_plain_version_does(kumar):
    from scipy.io import loadmat

    labels = loadmat(min((kumar / "Test_diff" / "Labels").glob("*.mat")))["inst_map"][:300, :300].astype(np.int32)
    types = labels % 5
    assert_equal_nuclei(post_proc.measure(labels, types, 5).to_dict(), plain_measure(labels, types))


def test_p18_time_is_linear():
    """64 times the pixels and the nuclei: one comparison of the whole map per nucleus would take 4096 times."""
    small = ellipses((128, 128), 60, np.random.default_rng(8))
    step = small.max() * np.arange(64).reshape(8, 8).repeat(128, 0).repeat(128, 1)
    large = np.where(np.tile(small, (8, 8)) > 0, np.tile(small, (8, 8)) + step, 0).astype(np.int32)

    def best_time(inst_map):
        times = []
        for _ in range(3):
            start = thread_time()
            found = post_proc.measure(inst_map, inst_map % 3)
            times.append(thread_time() - start)
        assert len(found) + post_proc.count_dropped(inst_map, found) == inst_map.max()
        return min(times)

    assert best_time(large) < 4 * 64 * best_time(small)


def test_what_lies_around_a_core_does_not_change_the_nuclei_inside():
    """The margin has steeper slopes than the core, as another tissue beside it would; between them lies glass."""
    maps = maps_like("network", (300, 320), np.random.default_rng(0))[..., 1:]
    core = (slice(60, 240), slice(50, 260))
    inside = np.zeros(maps.shape[:2], np.uint8)
    inside[core] = 1
    square = np.ones((2 * edges.SOBEL_KSIZE,) * 2, np.uint8)
    near = cv2.dilate(inside, square) - cv2.erode(inside, square)
    maps[near > 0] = 0
    maps[(inside == 0), 1:] *= 2
    alone = post_proc.segment(maps[core])
    found, stretched_by_all = (post_proc.segment(maps, part)[core] for part in (core, None))
    pairs = np.unique(np.stack([found, alone]).reshape(2, -1), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1] > 20
    assert len(np.unique(stretched_by_all)) != pairs.shape[1]
