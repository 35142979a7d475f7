"""Hand-drawn contours from Sedeen, QuPath, ASAP, Aperio ImageScope and HALO, as one kind of object.

The content decides the format, not the file name. All coordinates are returned in px of the image; whole numbers are
pixel centres.
"""

from __future__ import annotations

import io
import json
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
import numpy as np
from defusedxml import DefusedXmlException

from misc.formats import sedeen
from misc.formats.annotations_geojson import from_geojson, regions_from_geojson
from misc.formats.annotations_xml import from_asap, from_imagescope, take_away
from misc.formats.contours import Annotations, Contour
from misc.formats.nuclei_json import MAX_PX
from misc.machine import available_memory

_GZIP_MAGIC = b"\x1f\x8b"
# zlib's `wbits` for a gzip header.
_GZIP_WINDOW = 31
# Byte-order marks; what may stand before the first character; bytes in which that one should be.
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MARKS_AND_SPACE = b"\xef\xbb\xbf\xff\xfe \t\r\n"
_SNIFF_BYTES = 4096
# Memory of a parsed file, as a multiple of its text: a point "[1.5, 2.5], " becomes a list and two numbers.
_PARSED_BY_TEXT = 12


def read_annotations(path: str | Path) -> Annotations:
    """Read a Sedeen session, QuPath GeoJSON, ASAP, ImageScope or HALO XML; UTF-8 or UTF-16, gzip or not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another format, is broken, or does not fit into memory; one line says which.
    """
    return _read(path, _Readers(from_geojson, _from_sedeen))


def read_regions(path: str | Path) -> Annotations:
    """Read the outlines of parts of a slide from the same files: tumour beds, tissue, fields; no nuclei.

    Of QuPath's objects these are annotations and cores of tissue arrays; of Sedeen's graphics those without the
    description or colour of a nucleus (`LAB_PENS`); of ASAP, ImageScope and HALO all. Labels are their classes.

    Raises:
        As `read_annotations`.
    """
    return _read(path, _Readers(regions_from_geojson, _regions_from_sedeen))


@dataclass(frozen=True)
class _Readers:
    """The parsers for files that hold both nuclei and regions."""

    geojson: Callable[[object], Annotations]
    session: Callable[[sedeen.Session], Annotations]


def _read(path: str | Path, readers: _Readers) -> Annotations:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return _checked(_parse(_read_text(path), readers))
    except ParseError as error:
        raise ValueError(f"{path}: broken XML: {error}") from error
    except DefusedXmlException as error:
        raise ValueError(f"{path}: refused, annotations hold no entities: {type(error).__name__}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: brackets within brackets, too deep to be annotations") from error
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: not valid as annotations: {type(error).__name__}: {error}") from error


def _read_text(path: Path) -> bytes:
    """Read a file and unpack it if it is packed; at most as much as can be parsed in the free memory."""
    most = available_memory() // _PARSED_BY_TEXT
    too_large = ValueError(f"more text than {most / 1e6:.0f} MB, which is what the free memory can hold when parsed")
    if path.stat().st_size > most:
        raise too_large
    data = path.read_bytes()
    if not data.startswith(_GZIP_MAGIC):
        return data
    pieces, size = [], 0
    while data:  # an archive may have several members
        unpacker = zlib.decompressobj(_GZIP_WINDOW)
        pieces.append(unpacker.decompress(data, most - size + 1))
        size += len(pieces[-1])
        if size > most:
            raise too_large
        if not unpacker.eof:
            raise EOFError("the archive is cut short")
        data = unpacker.unused_data.lstrip(b"\0")
    return b"".join(pieces)


def _parse(data: bytes, readers: _Readers) -> Annotations:
    """Read a file of any kind; the characters that tell the kind contain a zero byte in UTF-16."""
    first = data[:_SNIFF_BYTES].replace(b"\0", b"").lstrip(_MARKS_AND_SPACE)[:1]
    if first in (b"{", b"["):
        return readers.geojson(json.loads(data))
    if first != b"<":
        raise ValueError("neither XML nor GeoJSON")
    if not data.startswith(_UTF16_MARKS):
        data = data.lstrip(_MARKS_AND_SPACE)  # white space must not precede an XML declaration
    _, root = next(defusedxml.ElementTree.iterparse(io.BytesIO(data), events=("start",), forbid_dtd=True))
    if root.tag == "session":
        return readers.session(sedeen.parse_session(io.BytesIO(data)))
    of_xml = {"ASAP_Annotations": from_asap, "Annotations": from_imagescope}
    if root.tag not in of_xml:
        raise ValueError(
            f"its first element is <{root.tag}>; Sedeen (<session>), ASAP (<ASAP_Annotations>), ImageScope and HALO "
            "(<Annotations>) are read"
        )
    return of_xml[root.tag](defusedxml.ElementTree.fromstring(data, forbid_dtd=True))


def _checked(found: Annotations) -> Annotations:
    for index, contour in enumerate(found.contours):
        for ring in (*contour.rings, *contour.holes):
            if not np.isfinite(ring).all():
                raise ValueError(f"contour {index} has coordinates that are no finite numbers")
            if np.abs(ring).max(initial=0) > MAX_PX:
                raise ValueError(f"contour {index} exceeds the range of +-{MAX_PX} px")
    return found


def _from_sedeen(session: sedeen.Session) -> Annotations:
    contours, others = [], Counter()
    for graphic in session.graphics:
        if graphic.may_be_nucleus:
            contours.append(Contour([graphic.outline_xy()], graphic.description.strip(), graphic.pen_colour[:7]))
        else:
            others[graphic.type] += 1
    return Annotations(contours, others, session.image_name)


def _regions_from_sedeen(session: sedeen.Session) -> Annotations:
    """Read the graphics that are not nuclei; a hole of a region is its own graphic, with a description that says so."""
    contours, holes, others = [], [], Counter()
    for graphic in session.graphics:
        label = sedeen.region_label(graphic)
        if label is None or not graphic.may_be_nucleus:
            others["nucleus" if graphic.may_be_nucleus else graphic.type] += 1
        elif label.endswith(sedeen.HOLE):
            holes.append(graphic.outline_xy())
        else:
            name = "" if sedeen.DEFAULT_NAME.fullmatch(graphic.name) else graphic.name.strip()
            contours.append(Contour([graphic.outline_xy()], label, graphic.pen_colour[:7], name=name))
    if alone := take_away(holes, contours):
        others["hole"] += len(alone)
    return Annotations(contours, others, session.image_name)
