"""Hand-drawn contours from Sedeen, QuPath, ASAP, Aperio ImageScope and HALO, as one kind of object.

The format is told by the content, not by the name. All coordinates come out as px of the image in which whole numbers
are the centres of pixels.
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
# zlib's word for "a gzip header is expected".
_GZIP_WINDOW = 31
# Byte-order marks; what may stand before the first character; bytes in which that one should be.
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MARKS_AND_SPACE = b"\xef\xbb\xbf\xff\xfe \t\r\n"
_SNIFF_BYTES = 4096
# How many times as much memory as its text a parsed file takes: a point "[1.5, 2.5], " is a list and two numbers.
_PARSED_BY_TEXT = 12


def read_annotations(path: str | Path) -> Annotations:
    """Read a Sedeen session, QuPath GeoJSON, ASAP, ImageScope or HALO XML; UTF-8 or UTF-16, gzip or not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, broken, or more than memory holds; one line says which.
    """
    return _read(path, _Readers(from_geojson, _from_sedeen))


def read_regions(path: str | Path) -> Annotations:
    """Read the outlines of parts of a slide from the same files: tumour beds, tissue, fields; no nuclei.

    Of QuPath's objects these are annotations and cores of tissue arrays; of Sedeen's graphics those that are not
    described or coloured as the lab's nuclei; of ASAP, ImageScope and HALO all. Labels are their classes.

    Raises:
        As `read_annotations`.
    """
    return _read(path, _Readers(regions_from_geojson, _regions_from_sedeen))


@dataclass(frozen=True)
class _Readers:
    """What makes annotations of the content of files that hold nuclei and regions alike."""

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
    """Read a file and unpack it, where it is packed; no more than can be parsed in the memory that is free."""
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
    """Read whatever kind it is; UTF-16 has a zero in each character that tells the kind."""
    first = data[:_SNIFF_BYTES].replace(b"\0", b"").lstrip(_MARKS_AND_SPACE)[:1]
    if first in (b"{", b"["):
        return readers.geojson(json.loads(data))
    if first != b"<":
        raise ValueError("neither XML nor GeoJSON")
    if not data.startswith(_UTF16_MARKS):
        data = data.lstrip(_MARKS_AND_SPACE)  # a declaration may not stand behind white space
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
    """Read what is no nucleus of the lab's: a hole of a region is an outline of its own, which says so."""
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
