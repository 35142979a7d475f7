"""The pixel size in the metadata of an OME-TIFF."""

from __future__ import annotations

# um in each unit of the OME schema that a scanner may use; "μ" may be the Greek letter (U+03BC) or the sign (U+00B5)
_UM = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4,
    "km": 1e9, "in": 25400.0, "thou": 25.4, "ft": 304800.0, "pt": 25400.0 / 72,
}  # fmt: skip
_DEFAULT_UNIT = "µm"


def ome_mpp(xml: str | None, index: int, size_xy: tuple[int, int]) -> tuple[float, float] | None:
    """Return um a pixel (x, y) of one image of OME metadata.

    Args:
        xml: the metadata, or `None`.
        index: which image of the file it is.
        size_xy: its width and height; where readers leave images out, the first one of that size is meant.

    Returns:
        `None` where the metadata do not say it, or in a unit that is no length ("pixel").
    """
    if not xml:
        return None
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        images = [item for item in fromstring(xml).iter() if item.tag.endswith("}Pixels")]
    except ParseError:
        return None
    fitting = [item for item in images if _size(item) == size_xy]
    if index < len(images) and images[index] in fitting:
        return _mpp(images[index])
    return _mpp(fitting[0]) if fitting else None


def _size(pixels) -> tuple[int, int] | None:
    try:
        return int(pixels.attrib["SizeX"]), int(pixels.attrib["SizeY"])
    except (KeyError, ValueError):
        return None


def _mpp(pixels) -> tuple[float, float] | None:
    try:
        return tuple(
            float(pixels.attrib[f"PhysicalSize{axis}"])
            * _UM[pixels.attrib.get(f"PhysicalSize{axis}Unit", _DEFAULT_UNIT)]
            for axis in "XY"
        )
    except (KeyError, ValueError):
        return None
