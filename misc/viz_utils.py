"""Pictures of results: nuclei drawn on the image."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from .type_info import UNKNOWN_TYPE, UNTYPED, TypeInfo, say_types

DOT_RADIUS_PX = 3
DOT_COLOUR = (255, 0, 0)
UNKNOWN_COLOUR = (128, 128, 128)
LEGEND_ROW_PX = 20
_LEGEND_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)  # face, scale, thickness


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


def colorize_types(types: np.ndarray, type_info: TypeInfo) -> np.ndarray:
    """Paint a (H, W) map of types in their colours, unknown ones grey; (H, W, 3) uint8, RGB."""
    painted = np.zeros((*types.shape, 3), np.uint8)
    for type_id in np.unique(types).tolist():
        colour = UNKNOWN_COLOUR if type_id == UNKNOWN_TYPE else type_info.get(type_id, UNTYPED)[1]
        painted[types == type_id] = colour
    return painted


def with_legend(picture: np.ndarray, type_info: TypeInfo | None) -> np.ndarray:
    """Return an (H, W, 3) uint8 RGB picture with numbers and names of the types below it, each beside its colour."""
    texts = [(say_types([key], type_info), colour) for key, (_, colour) in (type_info or {}).items() if key]
    if not texts:
        return picture
    rows, (x, y) = np.full((LEGEND_ROW_PX * len(texts), picture.shape[1], 3), 255, np.uint8), (0, 0)
    for text, colour in texts:
        width = LEGEND_ROW_PX + cv2.getTextSize(text, *_LEGEND_FONT)[0][0] + LEGEND_ROW_PX // 2
        if x and x + width > rows.shape[1]:
            x, y = 0, y + LEGEND_ROW_PX
        corner, end = (x + 4, y + 4), (x + LEGEND_ROW_PX - 4, y + LEGEND_ROW_PX - 4)
        cv2.rectangle(rows, corner, end, colour, cv2.FILLED)
        cv2.putText(
            rows, text, (x + LEGEND_ROW_PX, y + LEGEND_ROW_PX - 6), *_LEGEND_FONT[:2], (0, 0, 0), 1, cv2.LINE_AA
        )
        x += width
    return np.concatenate([picture, rows[: y + LEGEND_ROW_PX]])
