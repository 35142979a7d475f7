"""How a tracked value looks on the console, in JSON and in TensorBoard."""

from __future__ import annotations

import math

_FORMATS = ("console", "json", "tensorboard")


def serialize(value, input_format: str, output_format: str):
    """Convert one tracked value.

    Args:
        value: a number (`scalar`) or an (H, W, 3) uint8 array (`image`).
        input_format: `scalar` or `image`.
        output_format: `console`, `json` or `tensorboard`.

    Returns:
        A string, a number or an array; `None` if the format cannot hold the value (a picture outside TensorBoard, a
        number that is not finite in JSON).

    Raises:
        ValueError: unknown format.
    """
    if input_format not in ("scalar", "image") or output_format not in _FORMATS:
        raise ValueError(f"cannot serialize `{input_format}` to `{output_format}`")
    if input_format == "image":
        return value if output_format == "tensorboard" else None
    if output_format == "console":
        return f"{value:.5f}"
    if output_format == "json":
        return float(value) if math.isfinite(value) else None
    return float(value)
