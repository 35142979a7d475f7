"""Pictures of results: nuclei drawn on the image."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from .type_info import UNKNOWN_TYPE, UNTYPED, TypeInfo

DOT_RADIUS_PX = 3
DOT_COLOUR = (255, 0, 0)
UNKNOWN_COLOUR = (128, 128, 128)


def random_colors(count: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Return `count` well-separated bright colours, 0-255, in an order that is the same for the same seed."""
    hues = np.random.default_rng(seed).permutation(count) / max(count, 1)
    return [tuple(int(255 * v) for v in colorsys.hsv_to_rgb(hue, 1.0, 1.0)) for hue in hues]


def visualize_instances_dict(
    input_image: np.ndarray,
    inst_dict: dict,
    draw_dot: bool = False,
    type_colour: TypeInfo | None = None,
    line_thickness: int = 2,
) -> np.ndarray:
    """Draw the outline of every nucleus.

    Args:
        input_image: (H, W, 3) uint8, RGB.
        inst_dict: `{id: {"contour": (M, 2) x, y, "type": int or None, "centroid": [x, y]}}`.
        draw_dot: mark the centroids too.
        type_colour: `{type: (name, (r, g, b))}`; `None` gives every nucleus a colour of its own.
        line_thickness: px.

    Returns:
        A new (H, W, 3) uint8 image.
    """
    overlay = input_image.copy()
    own_colours = random_colors(len(inst_dict)) if type_colour is None else None
    for index, info in enumerate(inst_dict.values()):
        if own_colours is not None:
            colour = own_colours[index]
        else:
            colour = tuple(int(v) for v in type_colour.get(info.get("type"), UNTYPED)[1])
        cv2.drawContours(overlay, [np.asarray(info["contour"], np.int32)], -1, colour, line_thickness)
        if draw_dot:
            centre = tuple(int(v) for v in info["centroid"])
            cv2.circle(overlay, centre, DOT_RADIUS_PX, DOT_COLOUR, -1)
    return overlay


def colorize(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """Paint a (H, W) map in blue (`low`) to red (`high`), values outside clipped; returns (H, W, 3) uint8, RGB."""
    scaled = np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1)
    bgr = cv2.applyColorMap(np.rint(scaled * 255).astype(np.uint8), cv2.COLORMAP_JET)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def colorize_types(types: np.ndarray, high: int) -> np.ndarray:
    """Paint a (H, W) map of types as `colorize` does from 0 to `high`, unknown ones grey; (H, W, 3) uint8, RGB."""
    unknown = types == UNKNOWN_TYPE
    painted = colorize(np.where(unknown, 0, types), 0, high)
    painted[unknown] = UNKNOWN_COLOUR
    return painted
