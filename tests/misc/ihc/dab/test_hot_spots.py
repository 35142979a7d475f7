"""Hot spots: those of a loop over all windows."""

from __future__ import annotations

import numpy as np
import shapely

from misc.ihc.dab.hot_spots import SAMPLES, SIDES, find_hot_spots
from misc.ihc.markers import BY_INDEX, BY_POSITIVE, CIRCLE, SQUARE, marker


def made_up(seed, count=200, extent_um=400):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, extent_um, (count, 2)) + rng.uniform(-2000, 2000, 2)
    xy[: count // 3] = xy[0] + rng.normal(0, 40, (count // 3, 2))  # a crowd
    return xy, rng.integers(0, 5, count).astype(np.uint8), rng.random(count) < 0.9


def in_window(xy, centre, side, shape):
    away = xy - centre
    return (away**2).sum(1) <= (side / 2) ** 2 if shape == CIRCLE else ((away >= -side / 2) & (away < side / 2)).all(1)


def overlaps(first, second, shape):
    away, touching = np.abs(first[0] - second[0]), (first[1] + second[1]) / 2 - 1e-6
    return np.hypot(*away) < touching if shape == CIRCLE else bool((away < touching).all())


def tissue_share(tissue, centre, side, step, shape):
    """Look at every sample point around a window."""
    reach = np.arange(-SIDES[-1] * SAMPLES // 2, SIDES[-1] * SAMPLES // 2) + 0.5
    points = centre + np.stack(np.meshgrid(reach, reach), -1).reshape(-1, 2) * step / SAMPLES
    points = points[in_window(points, centre, side, shape)]
    return shapely.intersects_xy(tissue, *points.T).mean()


def by_brute_force(xy, classes, inside, one, tissue):
    """Try every window, count in it, and take the best that overlaps none before."""
    kept = (classes > 0) & inside
    xy, positive, step = xy[kept], classes[kept] > 1, one.side_um / SIDES[0]
    low, high = np.floor(xy / step).min(0), np.floor(xy / step).max(0) + 1
    points = [np.array([x, y]) for y in np.arange(low[1], high[1] + 1) for x in np.arange(low[0], high[0] + 1)]
    windows = []
    for point in points:
        for side in SIDES:
            within = in_window(xy, point * step, side * step, one.shape)
            if within.sum() >= one.min_nuclei:
                break
        total, found = within.sum(), (within & positive).sum()
        rank = found / max(total, 1) if one.ranked_by == BY_INDEX else found / side**2
        away = np.abs(2 * point - low - high).sum()
        windows.append((point * step, side * step, total, found, rank, away))
    spots = []
    for window in sorted(windows, key=lambda w: (-w[4], -w[2], w[5])):
        is_free = not any(overlaps(window, other, one.shape) for other in spots)
        if len(spots) < one.top_k and is_free and window[2] >= one.min_nuclei and window[3]:
            if tissue_share(tissue, *window[:2], step, one.shape) >= one.min_tissue:
                spots.append(window)
    return spots or sorted((w for w in windows if w[3]), key=lambda w: (-w[2], w[5]))[:1]


def test_hot_spots_are_those_of_a_loop_over_all_windows(subtests):
    for seed in range(2):
        for shape in (SQUARE, CIRCLE):
            for ranked_by, least, share in (
                (BY_INDEX, 10, 0.7),
                (BY_POSITIVE, 20, 0.4),
                (BY_INDEX, 10_000, 0),
            ):
                rule = {"ranked_by": ranked_by, "min_nuclei": least, "min_tissue": share}
                one = marker("ki67", field_mm2=0.01, shape=shape, top_k=4, **rule)
                xy, classes, inside = made_up(seed)
                tissue = shapely.Point(np.median(xy, axis=0)).buffer(150) - shapely.Point(xy[0] + 60).buffer(40)
                with subtests.test(seed=seed, shape=shape, **rule):
                    found = find_hot_spots(xy, classes, inside, one, tissue)
                    wanted = by_brute_force(xy, classes, inside, one, tissue)
                    got = [(*spot.centre_xy_um, spot.side_um, spot.score.measured) for spot in found]
                    assert np.allclose(got, [(*w[0], w[1], w[2]) for w in wanted])
                    assert [spot.rank for spot in found] == list(range(1, len(wanted) + 1))
                    assert all(spot.has_enough == (least < 10_000) for spot in found)
                    assert all(spot.has_tissue for spot in found)


def test_a_field_half_over_glass_loses_to_one_on_tissue_and_is_flagged_where_it_is_the_only_one():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (4000, 2))
    classes = np.where((xy[:, 0] < 60) | (rng.random(4000) < 0.2), 4, 1)  # at the edge, all are positive
    tissue = shapely.box(0, 0, 1000, 1000)
    rule = {"field_mm2": 0.04, "min_nuclei": 40, "top_k": 3}
    for shape in (SQUARE, CIRCLE):
        assert find_hot_spots(xy, classes, None, marker("ki67", shape=shape, **rule), tissue)[0].centre_xy_um[0] < 100
        spots = find_hot_spots(xy, classes, None, marker("ki67", shape=shape, min_tissue=1, **rule), tissue)
        assert len(spots) == 3
        assert all(100 <= value <= 900 for spot in spots for value in spot.centre_xy_um)
    (spot,) = find_hot_spots(xy, classes, None, marker("ki67", min_tissue=0.5, **rule), shapely.box(0, 0, 90, 90))
    assert spot.has_enough
    assert not spot.has_tissue


def test_members_are_the_nuclei_that_count():
    xy, classes, inside = made_up(1)
    for shape in (SQUARE, CIRCLE):
        one = marker("ki67", field_mm2=0.01, shape=shape, min_nuclei=20)
        spots = find_hot_spots(xy, classes, inside, one)
        members = np.concatenate([spot.members for spot in spots])
        assert len(set(members.tolist())) == len(members)
        assert inside[members].all()
        assert (classes[members] > 0).all()
        for spot in spots:
            assert spot.score.measured == len(spot.members) >= 20
            ring = spot.outline_xy_um()
            area = abs(np.dot(ring[:, 0], np.roll(ring[:, 1], 1)) - np.dot(ring[:, 1], np.roll(ring[:, 0], 1))) / 2e6
            assert abs(area / spot.area_mm2 - 1) < 0.002  # of a circle 64 points are drawn


def test_nothing_positive_is_no_hot_spot_and_a_small_image_is_a_flagged_one():
    xy, classes, _ = made_up(2, extent_um=120)
    assert find_hot_spots(xy, np.minimum(classes, 1), None, marker("ki67")) == []
    assert find_hot_spots(xy, classes, np.zeros(len(xy), bool), marker("ki67")) == []
    assert find_hot_spots(np.zeros((0, 2)), np.zeros(0, np.uint8), None, marker("ki67")) == []
    # an image is smaller than a hot spot: one window, and it is flagged
    (spot,) = find_hot_spots(xy, classes, None, marker("ki67"))
    assert spot.score.measured == (classes > 0).sum()
    assert not spot.has_enough
