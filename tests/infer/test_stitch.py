"""Stitching: cut into tiles and joined again, nuclei are what they were; no two overlap; order does not matter."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from painted_tiles import LARGEST_PX, ellipses, parts_of, parts_that_differ, shaken, tile_part, whole_pieces
from scipy import ndimage

from infer.grid import TileGrid, tile_grid
from infer.stitch import Stitcher
from infer.stitch_state import StitchState
from infer.tile_nuclei import hand_over, pack, unpack
from misc.nuclei import Nuclei
from models.hovernet.post_proc import measure


def stitch(tiles: TileGrid, parts, expected=None) -> Nuclei:
    stitcher = Stitcher(tiles, expected)
    pieces = list(itertools.chain.from_iterable(stitcher.add(part) for part in parts))
    assert stitcher.done
    return Nuclei.concat(pieces)


def contours(nuclei: Nuclei) -> list[bytes]:
    return sorted(nuclei.contour(i).tobytes() for i in range(len(nuclei)))


def painted(nuclei: Nuclei, shape) -> np.ndarray:
    """Paint the outlines; every pixel must be free."""
    labels = np.zeros(shape, np.int32)
    for i in range(len(nuclei)):
        mask = np.zeros(shape, np.uint8)
        cv2.fillPoly(mask, [nuclei.contour(i)], 1)
        assert not labels[mask > 0].any(), "two nuclei overlap"
        labels[mask > 0] = nuclei.ids[i]
    return labels


@pytest.mark.parametrize("side", [17, 32, 33, 64])
@pytest.mark.parametrize("length", [1, 16, 31, 32, 33, 63, 64, 65, 66, 97])
def test_p09_cut_and_joined_is_the_identity(side, length):
    """Swept over sizes around every boundary; the margin holds a whole nucleus on either side of a line."""
    shape = (length, 75)
    labels = ellipses(shape, seed=length)
    tiles = tile_grid(shape, side, 2 * LARGEST_PX)
    found = stitch(tiles, parts_of(labels, tiles))
    assert contours(found) == contours(measure(labels))
    if len(tiles) > 1:
        assert found.ids.tolist() == list(range(1, len(found) + 1))


def test_ids_of_a_single_tile_are_kept():
    labels = ellipses((50, 60)) * 3
    tiles = tile_grid(labels.shape, 64, 8)
    whole = measure(labels)
    assert stitch(tiles, [hand_over(tiles, 0, labels, whole)]).ids.tolist() == whole.ids.tolist()


def test_the_order_of_tiles_does_not_matter():
    """Every permutation of four tiles, and some of nine, of nuclei that the tiles draw differently."""
    for shape, side in (((60, 60), 32), ((90, 90), 32)):
        tiles = tile_grid(shape, side, 6)
        parts = parts_that_differ(ellipses(shape), tiles)
        expected = stitch(tiles, parts)
        orders = itertools.permutations(parts) if len(parts) == 4 else shuffled(parts, 12)
        for order in orders:
            found = stitch(tiles, order)
            assert np.array_equal(found.points_xy, expected.points_xy)
            assert np.array_equal(found.ids, expected.ids)


def shuffled(parts: list, times: int):
    rng = np.random.default_rng(0)
    return ([parts[i] for i in rng.permutation(len(parts))] for _ in range(times))


@pytest.mark.parametrize("margin", [0, 3, 8, 20])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_tiles_say_no_two_nuclei_overlap(seed, margin):
    shape = (83, 96)
    labels = ellipses(shape, seed)
    tiles = tile_grid(shape, 32, margin)
    parts = parts_that_differ(labels, tiles, 100 * seed)
    found = stitch(tiles, parts)
    painted(found, shape)
    assert np.array_equal(np.sort(found.ids), np.arange(1, len(found) + 1))
    for other in shuffled(parts, 3):
        assert np.array_equal(stitch(tiles, other).points_xy, found.points_xy)


@pytest.mark.parametrize(("first", "second"), [(30, 33), (33, 30), (30, 30), (33, 33)])
def test_a_nucleus_whose_centre_lies_on_different_sides_of_the_line_is_there_once(first, second):
    """Tiles 0 and 1 meet at x = 32; each has the nucleus where the other does not see it, or both have it."""
    tiles = tile_grid((32, 64), 32, 16)
    parts = []
    for index, x in enumerate((first, second)):
        labels = np.zeros((32, 64), np.int32)
        cv2.circle(labels, (x, 16), 7, 1, -1)
        parts.append(tile_part(labels, tiles, index))
    found = stitch(tiles, parts)
    assert len(found) == 1
    assert abs(found.centroids_xy[0, 0] - 31.5) < 2


@pytest.mark.parametrize("box", [(10, 10, 20, 90), (10, 10, 90, 20), (20, 20, 80, 80), (30, 30, 34, 34)])
def test_a_nucleus_larger_than_the_margin_is_put_together(box):
    """It reaches through two, three or nine tiles of 32 px that see 4 px of each other."""
    labels = np.zeros((100, 100), np.int32)
    y0, x0, y1, x1 = box
    labels[y0:y1, x0:x1] = 1
    tiles = tile_grid(labels.shape, 32, 4)
    for parts in (parts_of(labels, tiles), parts_of(labels, tiles)[::-1]):
        found = stitch(tiles, parts)
        assert found.boxes_yx.tolist() == [[[y0, x0], [y1, x1]]]
        assert np.array_equal(painted(found, labels.shape) > 0, labels > 0)


def test_neighbours_that_touch_on_the_line_stay_two():
    labels = np.zeros((40, 64), np.int32)
    labels[10:20, 22:32], labels[10:20, 32:42] = 1, 2
    tiles = tile_grid(labels.shape, 32, 16)
    found = stitch(tiles, parts_of(labels, tiles))
    assert sorted(found.boxes_yx[:, 0, 1].tolist()) == [22, 32]


def test_types_and_their_shares_travel_with_the_nuclei():
    labels = ellipses((70, 70))
    types = np.where(labels > 0, 1 + labels % 3, 0)
    tiles = tile_grid(labels.shape, 32, 2 * LARGEST_PX)
    parts = []
    for index in range(len(tiles)):
        y0, x0, y1, x1 = tiles.tile(index).outer
        seen = labels[y0:y1, x0:x1]
        parts.append(hand_over(tiles, index, seen, measure(seen, types[y0:y1, x0:x1], 4)))
    found = stitch(tiles, parts)
    whole = measure(labels, types, 4)
    expected = {whole.contour(i).tobytes(): (whole.types[i], whole.type_prob[i]) for i in range(len(whole))}
    assert {found.contour(i).tobytes(): (found.types[i], found.type_prob[i]) for i in range(len(found))} == expected


@pytest.mark.parametrize(("margin", "how"), [(3, "trimmed"), (8, "united")])
def test_nuclei_that_are_put_together_or_cut_back_keep_type_and_probabilities(margin, how):
    """Each tile says something else, so that shapes are united and cut back; all nuclei are of type 2."""
    labels = ellipses((83, 96), 1)
    labels[20:24, 5:90] = labels.max() + 1  # longer than a tile
    labels = whole_pieces(labels)
    tiles = tile_grid(labels.shape, 32, margin)
    parts = []
    for index in range(len(tiles)):
        y0, x0, y1, x1 = tiles.tile(index).outer
        seen = shaken(labels, index)[y0:y1, x0:x1]
        softmax = np.broadcast_to(np.array([0.1, 0.2, 0.7], np.float32), (*seen.shape, 3))
        parts.append(hand_over(tiles, index, seen, measure(seen, np.where(seen > 0, 2, 0), 3, softmax)))
    stitcher = Stitcher(tiles, range(len(tiles)))
    found = Nuclei.concat([nuclei for part in parts for nuclei in stitcher.add(part)])
    assert getattr(stitcher, how)
    assert (found.types == 2).all()
    assert found.type_prob.min() > 0.99
    assert np.allclose(found.class_probs, [0.1, 0.2, 0.7])
    painted(found, labels.shape)


def test_tiles_without_tissue_need_not_come():
    labels = ellipses((96, 96))
    labels[:, 30:] = 0
    labels = whole_pieces(labels)
    tiles = tile_grid(labels.shape, 32, 2 * LARGEST_PX)
    expected = [index for index in range(len(tiles)) if index % 3 == 0]
    found = stitch(tiles, [tile_part(labels, tiles, index) for index in expected], expected)
    assert contours(found) == contours(measure(labels))


def test_tiles_packed_for_the_disk_come_back_as_they_were():
    labels = ellipses((64, 64))
    tiles = tile_grid(labels.shape, 32, 8)
    parts = parts_of(labels, tiles)
    back = unpack(pack(parts))
    assert contours(stitch(tiles, back)) == contours(stitch(tiles, parts))
    for one, other in zip(parts, back, strict=True):
        assert (one.owned == other.owned).all()
        assert (one.cut == other.cut).all()
        masks = [i for i in range(len(one)) if one.mask_starts[i] < one.mask_starts[i + 1]]
        assert all(np.array_equal(one.mask(i), other.mask(i)) for i in masks)


@pytest.mark.parametrize("margin", [3, 8, 20])
def test_a_state_kept_on_disk_goes_on_as_if_nothing_had_been(tmp_path, margin):
    """After every tile; one nucleus is longer than a tile, so that shapes are united, cut back and waited for."""
    labels = ellipses((115, 96), 1)
    labels[20:24, 5:90] = labels[10:100, 50:54] = labels.max() + 1
    tiles = tile_grid(labels.shape, 32, margin)
    parts = parts_that_differ(whole_pieces(labels), tiles)
    expected = stitch(tiles, parts)
    state, found, seen = StitchState(), [], set()
    for part in parts:
        stitcher = Stitcher(tiles, state=state)
        found += stitcher.add(part)
        np.savez(tmp_path / "state.npz", **stitcher.state.to_arrays())
        seen |= {name for name in ("waiting", "grown") if getattr(stitcher.state, name)}
        seen |= {"shapes" for tile in stitcher.state.open.values() if tile.shapes}
        with np.load(tmp_path / "state.npz", allow_pickle=False) as arrays:
            state = StitchState.from_arrays(arrays)
    assert seen == {"waiting", "grown", "shapes"}
    found = Nuclei.concat(found)
    assert np.array_equal(found.points_xy, expected.points_xy)
    assert np.array_equal(found.ids, expected.ids)


def test_a_tile_that_is_not_expected_or_comes_twice_is_refused():
    tiles = tile_grid((64, 64), 32, 8)
    parts = parts_of(ellipses((64, 64)), tiles)
    stitcher = Stitcher(tiles, [0, 3])
    stitcher.add(parts[3])
    for part in (parts[1], parts[3]):
        with pytest.raises(ValueError, match=f"tile {part.tile} "):
            stitcher.add(part)
    stitcher.add(parts[0])
    with pytest.raises(ValueError, match="tile 0 "):
        stitcher.add(parts[0])


def test_only_tiles_that_still_meet_are_held():
    """Tiles of a tall slide are given back row by row: memory is bounded by a row, not by the slide."""
    tiles = tile_grid((640, 64), 32, 8)
    labels = ellipses((640, 64))
    stitcher, held = Stitcher(tiles), []
    for index in range(len(tiles)):
        stitcher.add(tile_part(labels, tiles, index))
        held.append(len(stitcher.state.open))
    assert max(held) <= 2 * tiles.cols + 1


def test_every_nucleus_has_pixels_also_where_no_other_tile_sees_it():
    """`np.unpackbits` of nothing is whatever the memory held: results differed from run to run."""
    labels = ellipses((300, 300), seed=3)
    tiles = tile_grid(labels.shape, 150, 20)
    for part in parts_of(labels, tiles):
        assert (np.diff(part.mask_starts) == 0).any()
        for i, box in enumerate(part.nuclei.boxes_yx.reshape(-1, 4).tolist()):
            inside = labels[box[0] : box[2], box[1] : box[3]]
            x, y = part.nuclei.contour(i)[0]
            expected = inside == labels[y, x]
            if part.cut[i]:
                continue
            assert np.array_equal(part.mask(i), ndimage.binary_fill_holes(expected))
