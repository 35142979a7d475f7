"""Sedeen session files: reading annotations, writing nuclei and hot spots.

A session names one image, its size and pixel size, and holds graphics in level-0 px. Sedeen ties a session to a
slide by the slide's full file name, so size, pixel size and name must be the slide's own. It shows the whole of level
0, while QuPath shows only the scanned part: so nothing is subtracted here (see `misc.formats.qupath`).

Nuclei are written by their pixel centres, unshifted, so that a contour comes back to the pixel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape, quoteattr

import defusedxml.ElementTree
import numpy as np
from defusedxml import DefusedXmlException

from misc.files import atomic_path
from misc.formats.contours import ELLIPSE_POINTS
from misc.formats.qupath import MIN_POINTS, check_types
from misc.nuclei import Nuclei
from misc.type_info import RGB, TypeInfo

# Graphics without an outline: never nuclei, whatever their colour.
NOT_NUCLEI = frozenset({"text", "point", "ruler", "arrow", "polyline"})
# Default pens (#rrggbbaa): staining class of a nucleus, the tumour bed, and hot spots by rank.
LAB_PENS: dict[int, str] = {1: "#ff0000ff", 2: "#0000ffff", 3: "#aa00ffff", 4: "#00ff00ff"}
LAB_CLASSES: dict[int, str] = {1: "negative", 2: "weak", 3: "moderate", 4: "strong"}
LAB_TYPES: TypeInfo = {key: (name, tuple(bytes.fromhex(LAB_PENS[key][1:7]))) for key, name in LAB_CLASSES.items()}
TUMOUR_BED_PEN = "#00ffffff"
TUMOUR_BED = "tumour bed"
# Description of hot spots, with their rank; and the end of the description of a region's hole, since Sedeen has no
# holes.
_TOP = re.compile(r"top(\d+)")
HOT_SPOT = "Hot spot"
# Sedeen's default names of graphics.
DEFAULT_NAME = re.compile(r"(Region \d+)?")
HOLE = " (hole)"
RANK_PENS = ("#ffff00ff", "#ff0000ff", "#0000ffff", "#aa00ffff", "#00ff00ff", "#000000ff")
# Software and version as in Sedeen's own files; it opens files with the same values.
SOFTWARE, VERSION = "PathCore Session Printer", "0.1.0"
PEN_WIDTH, FONT = 3, "Arial;12"
# Characters that XML 1.0 cannot hold, not even escaped (section 2.2), and their replacement.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INSTEAD = "\ufffd"


@dataclass(frozen=True)
class Graphic:
    """One annotation.

    Attributes:
        type: Sedeen's word: `polygon`, `rectangle`, `ellipse`, `polyline`, `text`, `point`, `ruler`, `arrow`.
        points_xy: (N, 2) float64, level-0 px; `ellipse` and `rectangle` have four, the corners of their box.
        pen_colour: `#rrggbbaa` in lower case, empty where the file gives none.
        name, description: free text; users put the class into the description.
    """

    type: str
    points_xy: np.ndarray
    pen_colour: str = ""
    name: str = ""
    description: str = ""

    @property
    def may_be_nucleus(self) -> bool:
        """Whether the graphic encloses an area."""
        return self.type not in NOT_NUCLEI and len(self.points_xy) >= MIN_POINTS

    def outline_xy(self) -> np.ndarray:
        """Return the polygon that the graphic draws, (N, 2) float64; for an ellipse one that follows it."""
        if self.type != "ellipse" or len(self.points_xy) != 4:
            return self.points_xy
        first, second, _, last = self.points_xy
        centre = self.points_xy.mean(axis=0)
        angle = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)[:, None]
        return centre + np.cos(angle) * (second - first) / 2 + np.sin(angle) * (last - first) / 2


@dataclass(frozen=True)
class Session:
    """The content of a session file.

    Attributes:
        image_name: the file name of the slide it belongs to.
        width, height: level-0 px.
        pixel_size_um: (x, y) um per px, or `None` where the file does not say.
        graphics: in the order of the file.
    """

    image_name: str
    width: int
    height: int
    pixel_size_um: tuple[float, float] | None
    graphics: list[Graphic]


# ---------------------------------------------------------------------------------------------- reading


def read_session(path: str | Path) -> Session:
    """Read a `.session.xml`; memory goes with the points in it, not with the length of the text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken XML, holds entities or a DTD, or is no Sedeen session; one line says which.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with open(path, "rb") as handle:
            return parse_session(handle)
    except ParseError as error:
        raise ValueError(f"{path}: broken XML: {error}") from error
    except DefusedXmlException as error:
        raise ValueError(f"{path}: refused, sessions hold no entities: {type(error).__name__}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_session(handle: BinaryIO) -> Session:
    """Read a session from an open file, as `read_session`.

    Raises:
        ParseError, DefusedXmlException, ValueError: the XML is broken or refused, or is no session.
    """
    events = defusedxml.ElementTree.iterparse(handle, events=("start", "end"), forbid_dtd=True)
    graphics: list[Graphic] = []
    _, root = next(events)
    if root.tag != "session":
        raise ValueError(f"this is no Sedeen session: its first element is <{root.tag}>, not <session>")
    for event, element in events:
        if event == "end" and element.tag == "graphic":
            graphics.append(_graphic(element, len(graphics)))
            element.clear()
    image = root.find("image")
    if image is None:
        raise ValueError("the session has no <image>")
    width, height = _pair(image.findtext("dimensions"), "dimensions")
    size = image.findtext("pixel-size")
    return Session(
        image_name=image.get("identifier", ""),
        width=int(width),
        height=int(height),
        pixel_size_um=None if not size else _pair(size, "pixel-size"),
        graphics=graphics,
    )


def _graphic(element: Element, index: int) -> Graphic:
    texts = [point.text or "" for point in element.iterfind("point-list/point")]
    try:
        points = np.array([_pair(text, "point") for text in texts], np.float64).reshape(-1, 2)
    except ValueError as error:
        raise ValueError(f"graphic {index} ({element.get('name', '')!r}): {error}") from error
    pen = element.find("pen")
    return Graphic(
        type=element.get("type", "").lower(),
        points_xy=points,
        pen_colour="" if pen is None else pen.get("color", "").lower(),
        name=element.get("name", ""),
        description=element.get("description", ""),
    )


def _pair(text: str | None, what: str) -> tuple[float, float]:
    try:
        first, second = (float(value) for value in (text or "").split(","))
    except ValueError:
        raise ValueError(f'<{what}> should be "x,y", but is {text!r}') from None
    if not (np.isfinite(first) and np.isfinite(second)):
        raise ValueError(f"<{what}> is not finite: {text!r}")
    return first, second


def region_label(graphic: Graphic) -> str | None:
    """Return the class of a graphic that outlines a region, and `None` for one around a nucleus.

    The description is the class. Without one the pen decides: the tumour bed's, a nucleus', or none of these.
    """
    text = graphic.description.strip()
    if _TOP.fullmatch(text):
        return HOT_SPOT
    if text:
        return None if text in LAB_CLASSES.values() else text
    if graphic.pen_colour == TUMOUR_BED_PEN:
        return TUMOUR_BED
    return None if graphic.pen_colour in LAB_PENS.values() else ""


# ---------------------------------------------------------------------------------------------- writing


def write_session(
    path: str | Path,
    image_name: str,
    width: int,
    height: int,
    pixel_size_um: float | tuple[float, float],
    graphics: Iterable[Graphic],
) -> int:
    """Write a `.session.xml`, one graphic after the other.

    Args:
        path: the file; Sedeen looks for `<slide>.session.xml` beside the slide.
        image_name: full file name of the slide, extension included.
        width, height: level-0 px.
        pixel_size_um: um per level-0 px, one number or (x, y).
        graphics: what to draw.

    Returns:
        Number of graphics.

    Raises:
        ValueError: size or pixel size is not positive.
    """
    size_x, size_y = np.broadcast_to(np.asarray(pixel_size_um, np.float64), 2).tolist()
    if min(width, height) <= 0 or not (size_x > 0 and size_y > 0):
        raise ValueError(f"a session needs positive sizes, got {width} x {height} px and {size_x} x {size_y} um per px")
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as out:
        out.write(_head(image_name, width, height, size_x, size_y))
        for graphic in graphics:
            out.write(_graphic_text(graphic))
            count += 1
        out.write("        </overlays>\n    </image>\n</session>\n")
    return count


def _head(image_name: str, width: int, height: int, size_x: float, size_y: float) -> str:
    centre = f"{width * size_x / 2:.6f},{height * size_y / 2:.6f}"
    return f"""<?xml version="1.0"?>
<session software={quoteattr(SOFTWARE)} version={quoteattr(VERSION)}>
    <image identifier={_attribute(image_name)}>
        <dimensions>{int(width)},{int(height)}</dimensions>
        <pixel-size units="um">{size_x:.6f},{size_y:.6f}</pixel-size>
        <transform>
            <translation units="um">0.000000,0.000000</translation>
            <center units="um">{centre}</center>
            <rotation unit="degrees">0.000000</rotation>
            <scale>1.000000,1.000000</scale>
        </transform>
        <overlays>
"""


def _graphic_text(graphic: Graphic) -> str:
    points = np.asarray(graphic.points_xy, np.float64)
    point = " " * 20 + "<point>%.6f,%.6f</point>\n"
    return f"""            <graphic type={_attribute(graphic.type)} name={_attribute(graphic.name)} \
description={_attribute(graphic.description)}>
                <pen color={_attribute(graphic.pen_colour)} width="{PEN_WIDTH}" style="Solid"/>
                <font>{escape(FONT)}</font>
                <point-list>
{point * len(points) % tuple(points.ravel().tolist())}                </point-list>
            </graphic>
"""


def _attribute(text: str) -> str:
    """Return a quoted attribute; characters that XML cannot hold are replaced, so that the session stays readable."""
    return quoteattr(_NO_XML.sub(_INSTEAD, text))


def pen(rgb: RGB) -> str:
    """Return a colour as an opaque pen, `#rrggbbff`."""
    red, green, blue = rgb
    return f"#{red:02x}{green:02x}{blue:02x}ff"


def nuclei_graphics(
    nuclei: Nuclei | Iterable[Nuclei], type_info: TypeInfo, scale: float = 1.0, pens: dict[int, str] | None = None
) -> Iterator[Graphic]:
    """Yield a polygon for each nucleus, its class in the description.

    Args:
        nuclei: nuclei, or an iterable of them; those with fewer than three contour points are left out.
        type_info: `{type: (name, (red, green, blue))}`, with the entry `None` for nuclei without a type.
        scale: level-0 px per px of the coordinates.
        pens: pen by type (`LAB_PENS`); types it lacks have the colour of `type_info`.

    Raises:
        ValueError: `type_info` lacks a type.
    """
    pens = {t: pen(rgb) for t, (_, rgb) in type_info.items()} | (pens or {})
    index = 0
    for part in [nuclei] if isinstance(nuclei, Nuclei) else nuclei:
        types = [None] * len(part) if part.types is None else part.types.tolist()
        check_types(set(types), type_info)
        points = (part.points_xy + 0.5) * scale - 0.5
        for i, type_id in enumerate(types):
            ring = points[part.offsets[i] : part.offsets[i + 1]]
            if len(ring) >= MIN_POINTS:
                yield Graphic("polygon", ring, pens[type_id], f"Region {index}", type_info[type_id][0])
                index += 1


def box_graphics(boxes_xyxy: np.ndarray) -> Iterator[Graphic]:
    """Yield a rectangle for each hot spot, best first: `top1`, `top2`, ..., pens by rank.

    Args:
        boxes_xyxy: (N, 4), [x0, y0, x1, y1] in level-0 px, the far edges exclusive.
    """
    for rank, (x0, y0, x1, y1) in enumerate(np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)):
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        colour = RANK_PENS[min(rank, len(RANK_PENS) - 1)]
        yield Graphic("rectangle", corners, colour, f"Region {rank}", f"top{rank + 1}")
