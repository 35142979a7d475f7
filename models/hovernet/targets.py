"""The targets of the network: nucleus or not, and the distance of each pixel to its nucleus' centre of mass.

Graham et al. (2019), section 2.1: within a nucleus the horizontal and the vertical distance to the centre, each scaled
so that it runs from -1 to 1; 0 outside. The numbers are upstream's.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.measure import label

from misc.type_info import TypeInfo, default_type_info
from misc.utils import cropping_center
from misc.viz_utils import colorize, colorize_types

# A nucleus with fewer px in the crop than this gets no distances (upstream).
MIN_CROP_PX = 30
# px around a nucleus' box (upstream). A nucleus nearer to the top or left edge gets no distances: the window cuts it,
# so its centre of mass is not known.
BOX_MARGIN_PX = 2


def fix_mirror_padding(ann: np.ndarray) -> np.ndarray:
    """Give each piece of a nucleus its own id, since reflection at the border makes copies with the same id.

    Args:
        ann: (H, W) integers, 0 background.

    Returns:
        A new array of the same type; the first piece of each nucleus (in raster order, joined by edges) keeps its id,
        the others are numbered beyond the largest.
    """
    pieces, nr_pieces = label(ann, background=0, return_num=True, connectivity=1)
    _, first = np.unique(pieces, return_index=True)
    ids = ann.ravel()[first[-nr_pieces:]] if nr_pieces else ann[:0, 0]  # id of each piece
    order = np.argsort(ids, kind="stable")
    start = np.flatnonzero(np.diff(ids[order], prepend=0))  # where a nucleus begins among its pieces
    counts = np.diff(start, append=nr_pieces)
    place = np.arange(nr_pieces) - np.repeat(start, counts)  # of each piece in its nucleus
    # upstream numbers a nucleus' pieces from the largest id so far on, the first piece included
    used = np.where(counts > 1, counts, 0)
    base = int(ann.max(initial=0)) + np.cumsum(used) - used
    new_ids = np.zeros(nr_pieces + 1, ann.dtype)
    new_ids[order + 1] = np.where(place == 0, ids[order], np.repeat(base, counts) + place + 1)
    return new_ids[pieces]


def gen_instance_hv_map(ann: np.ndarray, crop_shape) -> np.ndarray:
    """Return the distance maps of the nuclei that lie in the centre of a patch.

    Args:
        ann: (H, W) integers, instances of the whole patch, 0 background.
        crop_shape: (h, w) of the centre.

    Returns:
        (H, W, 2) float32 in [-1, 1], x (to the right) then y (downwards).
    """
    pieces = label(ann, background=0, connectivity=1)
    wanted = np.bincount(cropping_center(pieces, crop_shape).ravel(), minlength=int(pieces.max()) + 1) >= MIN_CROP_PX
    wanted[0] = False
    edges_yx = _edges(pieces, len(wanted))
    wanted &= (edges_yx[:, :, 0] >= BOX_MARGIN_PX).all(axis=1)
    y, x = np.nonzero(wanted[pieces])
    which = pieces[y, x]
    hv_map = np.zeros((*ann.shape[:2], 2), np.float32)
    for channel, axis, position in ((0, 1, x), (1, 0, y)):
        hv_map[y, x, channel] = _scaled_distance(position, which, edges_yx[:, axis])
    return hv_map


def _edges(pieces: np.ndarray, count: int) -> np.ndarray:
    """Return the boxes of pieces 0 to count - 1: (count, 2, 2) int64, for y and x the first px and the one after."""
    edges = np.zeros((count, 2, 2), np.int64)
    for index, box in enumerate(ndimage.find_objects(pieces), 1):
        edges[index] = [(side.start, side.stop) for side in box]
    return edges


def _scaled_distance(position: np.ndarray, which: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the distance of pixels to the centre of their piece, -1 at one end of the piece and 1 at the other.

    Args:
        position: (P,) of each pixel along one axis.
        which: (P,) its piece.
        edges: (N, 2) first px of each piece, and the one after the last.
    """
    first = edges[:, 0] - BOX_MARGIN_PX
    area = np.maximum(np.bincount(which, minlength=len(edges)), 1)
    centre = np.bincount(which, position - first[which], minlength=len(edges)) / area
    # upstream counts pixels from 1 and the rounded centre from 0, so every distance is larger by one
    zero = first + (centre + 0.5).astype(np.int64) - 1
    distance = (position - zero[which]).astype(np.float32)
    low, high = (edges[:, 0] - zero).astype(np.float32), (edges[:, 1] - 1 - zero).astype(np.float32)
    ends = np.where(distance < 0, -low[which], high[which])
    return np.divide(distance, ends, out=distance, where=distance != 0)


def gen_targets(ann: np.ndarray, crop_shape, **kwargs) -> dict[str, np.ndarray]:
    """Return the targets of NP and HV for a patch.

    Args:
        ann: (H, W) integers, instances of the whole patch.
        crop_shape: (h, w) of the network's output.
        kwargs: ignored; recipes may pass their own.

    Returns:
        `hv_map` (h, w, 2) float32, `np_map` (h, w) of the type of `ann`, 0 or 1.
    """
    nucleus = cropping_center(ann, crop_shape) > 0
    return {
        "hv_map": cropping_center(gen_instance_hv_map(ann, crop_shape), crop_shape),
        "np_map": nucleus.astype(ann.dtype),
    }


def prep_sample(data: dict, is_batch: bool = False, type_info: TypeInfo | None = None, **kwargs) -> np.ndarray:
    """Draw samples of the loader: the image, then NP, HV x, HV y in rainbow colours, and maybe TP in the types' own.

    Args:
        data: `img` (H, W, 3), `np_map` (h, w), `hv_map` (h, w, 2), maybe `tp_map` (h, w); with `is_batch`, a batch of
            them.
        is_batch: draw the samples of a batch below each other.
        type_info: colours of the types; a default palette if left out. Unknown types are grey.
        kwargs: ignored.

    Returns:
        (H, n * W, 3) uint8, RGB; maps smaller than the image lie in its middle.
    """
    if is_batch:
        samples = ({name: value[i] for name, value in data.items()} for i in range(len(data["img"])))
        return np.concatenate([prep_sample(sample, type_info=type_info) for sample in samples], axis=0)
    planes = [colorize(np.squeeze(data["np_map"]), 0, 1)]
    planes += [colorize(np.asarray(data["hv_map"][..., channel]), -1, 1) for channel in (0, 1)]
    if "tp_map" in data:
        types = np.squeeze(data["tp_map"])
        planes.append(colorize_types(types, type_info or default_type_info(int(types.max(initial=0)) + 1)))
    shape = data["img"].shape[:2]
    drawn = [_in_the_middle(plane, shape) for plane in planes]
    return np.concatenate([np.asarray(data["img"], np.uint8), *drawn], axis=1)


def _in_the_middle(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Put an (h, w, 3) picture into the middle of a black one of `shape`."""
    whole = np.zeros((*shape, 3), np.uint8)
    cropping_center(whole, picture.shape)[:] = picture
    return whole
