"""Stitching: cut into blocks and joined again, nuclei are what they were; no two overlap."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from painted_blocks import LARGEST_PX, block_part, ellipses, parts_of, parts_that_differ, shaken, whole_pieces
from scipy import ndimage

from infer.grid import BlockGrid, block_grid
from infer.segment import BlockNuclei, hand_over
from infer.stitch import Stitcher
from misc.nuclei import Nuclei
from models.hovernet.post_proc import measure


def stitch(blocks: BlockGrid, parts, expected=None) -> Nuclei:
    stitcher = Stitcher(blocks, expected)
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


def test_p09_cut_and_joined_is_the_identity():
    """Swept over sizes around every boundary; the margin holds a whole nucleus on either side of a line."""
    for side in [17, 32, 33, 64]:
        for length in (1, 16, 31, 32, 33, 63, 64, 65, 66, 97):
            shape = (length, 75)
            labels = ellipses(shape, seed=length)
            blocks = block_grid(shape, side, 2 * LARGEST_PX)
            found = stitch(blocks, parts_of(labels, blocks))
            assert contours(found) == contours(measure(labels))
            if len(blocks) > 1:
                assert found.ids.tolist() == list(range(1, len(found) + 1))


def test_ids_of_a_single_block_are_kept():
    labels = ellipses((50, 60)) * 3
    blocks = block_grid(labels.shape, 64, 8)
    whole = measure(labels)
    assert stitch(blocks, [hand_over(blocks, 0, labels, whole)]).ids.tolist() == whole.ids.tolist()


def test_whatever_the_blocks_say_no_two_nuclei_overlap():
    for margin in [0, 3, 8, 20]:
        for seed in range(6):
            shape = (83, 96)
            labels = ellipses(shape, seed)
            blocks = block_grid(shape, 32, margin)
            found = stitch(blocks, parts_that_differ(labels, blocks, 100 * seed))
            painted(found, shape)
            assert np.array_equal(np.sort(found.ids), np.arange(1, len(found) + 1))


def test_a_nucleus_whose_centre_lies_on_different_sides_of_the_line_is_there_once():
    """Blocks 0 and 1 meet at x = 32; each has the nucleus where the other does not see it, or both have it."""
    for first, second in [(30, 33), (33, 30), (30, 30), (33, 33)]:
        blocks = block_grid((32, 64), 32, 16)
        parts = []
        for index, x in enumerate((first, second)):
            labels = np.zeros((32, 64), np.int32)
            cv2.circle(labels, (x, 16), 7, 1, -1)
            parts.append(block_part(labels, blocks, index))
        found = stitch(blocks, parts)
        assert len(found) == 1
        assert abs(found.centroids_xy[0, 0] - 31.5) < 2


def test_a_nucleus_larger_than_the_margin_is_put_together():
    """It reaches through two, three or nine blocks of 32 px that see 4 px of each other."""
    for box in [(10, 10, 20, 90), (10, 10, 90, 20), (20, 20, 80, 80), (30, 30, 34, 34)]:
        labels = np.zeros((100, 100), np.int32)
        y0, x0, y1, x1 = box
        labels[y0:y1, x0:x1] = 1
        blocks = block_grid(labels.shape, 32, 4)
        found = stitch(blocks, parts_of(labels, blocks))
        assert found.boxes_yx.tolist() == [[[y0, x0], [y1, x1]]]
        assert np.array_equal(painted(found, labels.shape) > 0, labels > 0)


def test_neighbours_that_touch_on_the_line_stay_two():
    labels = np.zeros((40, 64), np.int32)
    labels[10:20, 22:32], labels[10:20, 32:42] = 1, 2
    blocks = block_grid(labels.shape, 32, 16)
    found = stitch(blocks, parts_of(labels, blocks))
    assert sorted(found.boxes_yx[:, 0, 1].tolist()) == [22, 32]


def test_types_and_their_shares_travel_with_the_nuclei():
    labels = ellipses((70, 70))
    types = np.where(labels > 0, 1 + labels % 3, 0)
    blocks = block_grid(labels.shape, 32, 2 * LARGEST_PX)
    parts = []
    for index in range(len(blocks)):
        y0, x0, y1, x1 = blocks.block(index).outer
        seen = labels[y0:y1, x0:x1]
        parts.append(hand_over(blocks, index, seen, measure(seen, types[y0:y1, x0:x1], 4)))
    found = stitch(blocks, parts)
    whole = measure(labels, types, 4)
    expected = {whole.contour(i).tobytes(): (whole.types[i], whole.type_prob[i]) for i in range(len(whole))}
    assert {found.contour(i).tobytes(): (found.types[i], found.type_prob[i]) for i in range(len(found))} == expected


def test_nuclei_that_are_put_together_or_cut_back_keep_type_and_probabilities():
    """Each block says something else, so that shapes are united and cut back; all nuclei are of type 2."""
    labels = ellipses((83, 96), 1)
    labels[20:24, 5:90] = labels.max() + 1  # longer than a block
    labels = whole_pieces(labels)
    for margin in (3, 8):
        blocks, parts = block_grid(labels.shape, 32, margin), []
        for index in range(len(blocks)):
            y0, x0, y1, x1 = blocks.block(index).outer
            seen = shaken(labels, index)[y0:y1, x0:x1]
            softmax = np.broadcast_to(np.array([0.1, 0.2, 0.7], np.float32), (*seen.shape, 3))
            parts.append(hand_over(blocks, index, seen, measure(seen, np.where(seen > 0, 2, 0), 3, softmax)))
        found = stitch(blocks, parts)
        drawn = {outline for part in parts for outline in contours(part.nuclei)}
        made = [i for i in range(len(found)) if found.contour(i).tobytes() not in drawn]
        widths = (found.boxes_yx[made, 1] - found.boxes_yx[made, 0])[:, 1]
        cut_back, united = (widths < LARGEST_PX + 2).any(), (widths > 32 + 2 * margin).any()
        assert cut_back if margin == 3 else united
        assert (found.types == 2).all()
        assert found.type_prob.min() > 0.99
        assert np.allclose(found.class_probs, [0.1, 0.2, 0.7])
        painted(found, labels.shape)


def test_blocks_without_tissue_need_not_come():
    labels = ellipses((96, 96))
    labels[:, 30:] = 0
    labels = whole_pieces(labels)
    blocks = block_grid(labels.shape, 32, 2 * LARGEST_PX)
    expected = [index for index in range(len(blocks)) if index % 3 == 0]
    found = stitch(blocks, [block_part(labels, blocks, index) for index in expected], expected)
    assert contours(found) == contours(measure(labels))


def test_blocks_kept_on_disk_come_back_as_they_were(tmp_path):
    labels = ellipses((64, 64))
    blocks = block_grid(labels.shape, 32, 8)
    parts, back = parts_of(labels, blocks), []
    for part in parts:
        np.savez(tmp_path / "part.npz", **part.to_arrays())
        with np.load(tmp_path / "part.npz", allow_pickle=False) as arrays:
            back.append(BlockNuclei.from_arrays(part.block, arrays))
    assert contours(stitch(blocks, back)) == contours(stitch(blocks, parts))
    for one, other in zip(parts, back, strict=True):
        assert (one.owned == other.owned).all()
        assert (one.cut == other.cut).all()
        assert all(np.array_equal(one.mask(i), other.mask(i)) for i in range(len(one)))


def test_any_other_block_than_the_next_is_refused():
    blocks = block_grid((64, 64), 32, 8)
    parts = parts_of(ellipses((64, 64)), blocks)
    stitcher = Stitcher(blocks, [3, 0])
    for before, after in ((0, 3), (3, None)):
        for part in parts:
            if part.block != before:
                with pytest.raises(ValueError, match=f"block {part.block} "):
                    stitcher.add(part)
        assert not stitcher.done
        stitcher.add(parts[before])
        assert stitcher.done == (after is None)
    with pytest.raises(ValueError, match="block 3 "):
        stitcher.add(parts[3])


def test_only_blocks_that_still_meet_are_held():
    """Blocks of a tall slide are given back row by row: memory is bounded by a row, not by the slide."""
    blocks = block_grid((640, 64), 32, 8)
    labels = ellipses((640, 64))
    stitcher, held = Stitcher(blocks), []
    for index in range(len(blocks)):
        stitcher.add(block_part(labels, blocks, index))
        held.append(len(stitcher._open))
    assert max(held) <= 2 * blocks.cols + 1


def test_every_nucleus_has_pixels_also_where_no_other_block_sees_it():
    """`np.unpackbits` of nothing is whatever the memory held: results differed from run to run."""
    labels = ellipses((300, 300), seed=3)
    blocks = block_grid(labels.shape, 150, 20)
    for part in parts_of(labels, blocks):
        assert (np.diff(part.mask_starts) == 0).any()
        for i, box in enumerate(part.nuclei.boxes_yx.reshape(-1, 4).tolist()):
            inside = labels[box[0] : box[2], box[1] : box[3]]
            x, y = part.nuclei.contour(i)[0]
            expected = inside == labels[y, x]
            if part.cut[i]:
                continue
            assert np.array_equal(part.mask(i), ndimage.binary_fill_holes(expected))
