"""From maps to nuclei in the output plane: the same for a block as for the whole, whichever plane the network reads."""

from __future__ import annotations

import cv2
import numpy as np
from stubs import HV_SCALE, disc_labels, painted_image

from infer.grid import Planes, block_grid
from infer.segment import BlockNuclei, _enlarged, hand_over, segment
from models.hovernet.post_proc import measure


def maps_of(labels: np.ndarray, types: np.ndarray | None = None) -> np.ndarray:
    """Return the maps of a network that is right about a label map, (C, h, w) float32."""
    image = painted_image(labels).astype(np.float32)
    maps = [(image[..., 0] < 128).astype(np.float32), *np.moveaxis((image[..., 1:] - 128) / HV_SCALE, -1, 0)]
    return np.stack(maps if types is None else [types[labels].astype(np.float32), *maps])


def whole_of(planes: Planes) -> tuple[int, int, int, int]:
    return 0, 0, *planes.out_yx


def random_boxes(shape_yx, count: int = 20):
    rng = np.random.default_rng(0)
    for _ in range(count):
        y0, x0 = rng.integers(0, shape_yx)
        y1, x1 = rng.integers((y0, x0), shape_yx) + 1
        yield int(y0), int(x0), int(y1), int(x1)


def test_enlarging_by_block_equals_enlarging_the_whole():
    """Bit for bit; types, of which there is no mean, come from the pixel that lies below."""
    for typed in [False, True]:
        for net_yx, out_yx in [((20, 30), (40, 60)), ((13, 7), (50, 30)), ((1, 5), (2, 10)), ((40, 33), (41, 34))]:
            planes = Planes(net_yx, out_yx)
            maps = np.random.default_rng(1).normal(size=(4 if typed else 3, *net_yx)).astype(np.float32)
            if typed:
                maps[0] = np.random.default_rng(2).integers(0, 5, net_yx)
            whole = _enlarged(maps, typed, planes, whole_of(planes))
            for box in random_boxes(out_yx):
                top, left, bottom, right = planes.net_box(box)
                part = _enlarged(maps[:, top:bottom, left:right], typed, planes, box)
                assert np.array_equal(part, whole[:, box[0] : box[2], box[1] : box[3]])
            for channel, plane in enumerate(maps):
                if typed and channel == 0:
                    expected = cv2.resize(plane, out_yx[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
                    assert np.array_equal(whole[channel], expected)
                else:
                    expected = cv2.resize(plane, out_yx[::-1], interpolation=cv2.INTER_CUBIC)
                    np.testing.assert_allclose(whole[channel], expected, atol=1e-4)


def found_as_drawn(labels: np.ndarray, inst_map: np.ndarray, nuclei, slack: int) -> None:
    """Every nucleus is there once, its box within `slack` px, and where the map has it."""
    drawn = measure(labels)
    assert inst_map.shape == labels.shape
    assert len(nuclei) == len(drawn)
    for i in range(len(nuclei)):
        x, y = nuclei.centroids_xy[i]
        assert inst_map[round(y), round(x)] == nuclei.ids[i]
        twin = np.flatnonzero(drawn.ids == labels[round(y), round(x)])
        assert len(twin) == 1
        assert np.abs(nuclei.boxes_yx[i] - drawn.boxes_yx[twin[0]]).max() <= slack
        ys, xs = np.nonzero(inst_map == nuclei.ids[i])
        extent = np.array([[ys.min(), xs.min()], [ys.max() + 1, xs.max() + 1]])
        assert np.abs(extent - nuclei.boxes_yx[i]).max() <= (slack > 0)  # P07: the box is the extent


def disc_picture(shape, spacing, radius) -> np.ndarray:
    """Discs that the border does not cut."""
    labels = disc_labels((shape[0] + spacing, shape[1] + spacing), spacing, radius)
    half = spacing // 2
    return np.ascontiguousarray(labels[half : half + shape[0], half : half + shape[1]])


def test_p07_nuclei_are_where_they_are_in_the_output_plane():
    """The network reads the same plane, one that is coarser by the factor, or one that is finer."""
    for factor in [1, 2, 0.5]:
        labels = disc_picture((240, 360), 60, 20)
        planes = Planes((round(240 / factor), round(360 / factor)), (240, 360))
        seen = cv2.resize(labels, planes.net_yx[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        inst_map, nuclei, dropped = segment(maps_of(seen), None, planes, whole_of(planes), whole_of(planes))
        assert dropped == 0
        found_as_drawn(labels, inst_map, nuclei, slack=0 if factor == 1 else 2)


def test_a_block_has_the_nuclei_of_the_whole():
    """Those that it sees whole are the same to the pixel, types and probabilities included."""
    for factor in [1, 2, 0.5]:
        labels = disc_picture((360, 480), 60, 20)
        types = 1 + np.arange(labels.max() + 1) % 3
        types[0] = 0
        planes = Planes((round(360 / factor), round(480 / factor)), (360, 480))
        seen = cv2.resize(labels, planes.net_yx[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        maps = np.concatenate([maps_of(seen, types), np.eye(4, dtype=np.float32)[types[seen]].transpose(2, 0, 1)])
        whole_map, whole, _ = segment(maps, 4, planes, whole_of(planes), whole_of(planes))
        assert len(whole) == 48
        assert np.array_equal(whole.types, types[[labels[round(y), round(x)] for x, y in whole.centroids_xy]])
        assert whole.class_probs.shape == (48, 4)
        blocks = block_grid(planes.out_yx, 120, 60)  # a nucleus of the core is seen whole
        count = 0
        for index in range(len(blocks)):
            block = blocks.block(index)
            y0, x0, y1, x1 = planes.net_box(block.outer)
            inst_map, nuclei, _ = segment(maps[:, y0:y1, x0:x1], 4, planes, block.outer, block.core)
            assert inst_map.shape == (block.outer[2] - block.outer[0], block.outer[3] - block.outer[1])
            part = hand_over(blocks, index, inst_map, nuclei)
            mine = part.nuclei.select(part.owned)
            for i in range(len(mine)):
                x, y = mine.centroids_xy[i]
                twin = np.flatnonzero(whole.ids == whole_map[round(y), round(x)])[0]
                assert np.array_equal(mine.boxes_yx[i], whole.boxes_yx[twin])
                assert np.array_equal(mine.contour(i), whole.contour(twin))
                assert mine.types[i] == whole.types[twin]
                np.testing.assert_allclose(mine.class_probs[i], whole.class_probs[twin], atol=1e-5)
                count += 1
        assert count == len(whole)


def test_a_plane_that_is_finer_by_some_columns_alone():
    """400 x 1000 px at 0.2503 um/px are 400 x 1001 px at 0.25."""
    labels = disc_picture((120, 1000), 60, 20)
    for net_yx in ((120, 1001), (120, 999), (121, 1000), (119, 1000)):
        planes = Planes(net_yx, (120, 1000))
        seen = cv2.resize(labels, net_yx[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        inst_map, nuclei, _ = segment(maps_of(seen), None, planes, whole_of(planes), whole_of(planes))
        found_as_drawn(labels, inst_map, nuclei, slack=2)


def test_specks_of_the_map_are_counted_where_they_were_found(monkeypatch):
    """One whose outline has two points stays in the map and is in no list, as in the original."""
    labels = disc_labels((60, 60))
    count = len(np.unique(labels)) - 1
    labels[20, 15:25], labels[20, 5] = 101, 102  # a line and a dot
    monkeypatch.setattr("infer.segment.process_nuclei", lambda *args, **kwargs: (labels, measure(labels)))
    maps = np.zeros((3, 60, 60), np.float32)
    for out_yx in ((60, 60), (30, 30)):  # the dot vanishes from a map of half the size, and still it was found
        planes = Planes((60, 60), out_yx)
        inst_map, nuclei, dropped = segment(maps, None, planes, whole_of(planes), whole_of(planes))
        assert (len(nuclei), dropped, inst_map.shape) == (count, 2, out_yx)
        if out_yx == (60, 60):
            assert np.array_equal(inst_map, labels)


def test_a_map_without_background_drops_nothing(monkeypatch):
    labels, planes = np.ones((40, 40), np.int32), Planes((40, 40), (40, 40))
    monkeypatch.setattr("infer.segment.process_nuclei", lambda *args, **kwargs: (labels, measure(labels)))
    _, nuclei, dropped = segment(np.zeros((3, 40, 40), np.float32), None, planes, (0, 0, 40, 40), (0, 0, 40, 40))
    assert (len(nuclei), dropped) == (1, 0)


def test_p12_maps_without_nuclei():
    for net_yx, out_yx in (((30, 40), (30, 40)), ((15, 20), (30, 40)), ((60, 80), (30, 40)), ((1, 1), (1, 1))):
        planes = Planes(net_yx, out_yx)
        whole = whole_of(planes)
        inst_map, nuclei, dropped = segment(np.zeros((4, *net_yx), np.float32), 3, planes, whole, whole)
        assert (inst_map.shape, inst_map.any(), len(nuclei), dropped) == (out_yx, False, 0, 0)


def test_what_is_handed_over_comes_back_from_the_disk(tmp_path):
    labels = disc_labels((120, 120))
    types = np.where(labels > 0, 1 + labels % 3, 0)
    softmax = np.eye(4, dtype=np.float32)[types]
    blocks = block_grid(labels.shape, 64, 10)
    y0, x0, y1, x1 = blocks.block(3).outer
    for nuclei in (
        measure(labels[y0:y1, x0:x1]),
        measure(*(a[y0:y1, x0:x1] for a in (labels, types)), 4, softmax[y0:y1, x0:x1]),
    ):
        part = hand_over(blocks, 3, labels[y0:y1, x0:x1], nuclei)
        np.savez(tmp_path / "part.npz", **part.to_arrays())
        with np.load(tmp_path / "part.npz", allow_pickle=False) as arrays:
            back = BlockNuclei.from_arrays(3, arrays)
        assert len(back) == len(part) > 0
        for name, value in part.to_arrays().items():
            assert np.array_equal(back.to_arrays()[name], value), name
        assert (back.nuclei.types is None) == (nuclei.types is None)
