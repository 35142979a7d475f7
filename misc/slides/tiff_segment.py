"""Decoding one strip or tile of a TIFF file, also where tifffile lacks the codec.

tifffile decodes LZW and JPEG only with the `imagecodecs` package, which is no requirement of ours. OpenCV brings
libtiff: a strip or tile wrapped as a TIFF file of its own is decoded by that.
"""

from __future__ import annotations

import struct

import cv2
import numpy as np

_LZW, _JPEG = 5, 7  # values of the tag Compression
_GREY = 1  # value of the tag PhotometricInterpretation
_YCBCR = 6
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSET, _SAMPLES, _ROWS, _SIZE, _SUBSAMPLING, _TABLES = (
    256, 257, 258, 259, 262, 273, 277, 278, 279, 530, 347,
)  # fmt: skip
_SHORT, _LONG, _UNDEFINED = 3, 4, 7  # types of tags
_TYPE_BYTES = {_SHORT: 2, _LONG: 4, _UNDEFINED: 1}


class MissingCodecError(ValueError):
    """The file's compression can be decoded neither by tifffile as it is installed nor by OpenCV."""


def decode_segment(page, data: bytes, index: int) -> np.ndarray | None:
    """Decode segment `index` of a `tifffile.TiffPage`.

    Args:
        data: the segment as it is stored; empty for one that was never written.

    Returns:
        (h, w, C) samples, the tile whole or the strip as high as it is; `None` for an empty segment.

    Raises:
        MissingCodecError: nothing here decodes the compression.
        Exception: whatever the decoder raises on damaged data.
    """
    if not data:
        return None
    try:
        segment = page.decode(data, index, jpegtables=page.jpegtables)[0]
        return None if segment is None else segment[0]
    except (ValueError, ImportError) as error:
        if isinstance(error, ValueError) and "imagecodecs" not in str(error):
            raise
    if page.compression == _LZW:
        return _decode_lzw(page, data, index)
    if page.compression == _JPEG:
        return _decode_jpeg(page, data, index)
    raise MissingCodecError(f"is compressed as {page.compression.name}; `pip install imagecodecs` to read it")


def _shape(page, index: int) -> tuple[int, int, int]:
    """Return height, width and channels of a segment."""
    channels = page.samplesperpixel if page.planarconfig == 1 else 1
    if page.is_tiled:
        return page.tilelength, page.tilewidth, channels
    strips = -(-page.imagelength // page.rowsperstrip)
    top = index % strips * page.rowsperstrip
    return min(page.rowsperstrip, page.imagelength - top), page.imagewidth, channels


def _decode_lzw(page, data: bytes, index: int) -> np.ndarray:
    """Unpack the bytes as if they were grey pixels, then undo the horizontal differences of predictor 2."""
    if page.predictor not in (1, 2) or page.bitspersample not in (8, 16):
        raise MissingCodecError("is LZW of an unusual kind; `pip install imagecodecs` to read it")
    height, width, channels = shape = _shape(page, index)
    row_bytes = width * channels * page.bitspersample // 8
    raw = _decode_wrapped(data, (height, row_bytes, 1), _LZW, _GREY)
    samples = raw.ravel().view(page.parent.byteorder + page.dtype.char).reshape(shape).astype(page.dtype)
    return np.cumsum(samples, axis=1, dtype=page.dtype) if page.predictor == 2 else samples


def _decode_jpeg(page, data: bytes, index: int) -> np.ndarray:
    tables = [(_TABLES, _UNDEFINED, page.jpegtables)] if page.jpegtables else []
    if page.photometric == _YCBCR:
        tables.append((_SUBSAMPLING, _SHORT, struct.pack("<2H", *(page.subsampling or (2, 2)))))
    decoded = _decode_wrapped(data, _shape(page, index), _JPEG, int(page.photometric), tables)
    return np.ascontiguousarray(decoded[..., ::-1]) if decoded.shape[2] == 3 else decoded


def _decode_wrapped(
    data: bytes, shape: tuple[int, int, int], compression: int, photometric: int, more_tags=()
) -> np.ndarray:
    """Let OpenCV decode a segment; (h, w, C) uint8, channels in OpenCV's order."""
    height, width, channels = shape
    tags = [
        *((tag, _LONG, struct.pack("<I", value)) for tag, value in ((_WIDTH, width), (_LENGTH, height))),
        (_BITS, _SHORT, struct.pack("<H", 8) * channels),
        (_COMPRESSION, _SHORT, struct.pack("<H", compression)),
        (_PHOTOMETRIC, _SHORT, struct.pack("<H", photometric)),
        (_SAMPLES, _SHORT, struct.pack("<H", channels)),
        (_ROWS, _LONG, struct.pack("<I", height)),
        (_SIZE, _LONG, struct.pack("<I", len(data))),
        *more_tags,
    ]
    image = cv2.imdecode(np.frombuffer(_tiff_file(data, tags), np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.size != height * width * channels:
        raise ValueError("a strip or tile is damaged")
    return image.reshape(shape)


def _tiff_file(data: bytes, tags: list[tuple[int, int, bytes]]) -> bytes:
    """Return a little-endian TIFF file with one page of these tags and one strip."""
    tags = sorted([*tags, (_OFFSET, _LONG, b"\0\0\0\0")])
    values_at = 8 + 2 + 12 * len(tags) + 4
    strip_at = values_at + sum(len(value) + len(value) % 2 for _, _, value in tags)
    directory, values = struct.pack("<H", len(tags)), b""
    for tag, kind, value in tags:
        if tag == _OFFSET:
            value = struct.pack("<I", strip_at)
        directory += struct.pack("<HHI", tag, kind, len(value) // _TYPE_BYTES[kind])
        if len(value) > 4:
            directory += struct.pack("<I", values_at + len(values))
            values += value + b"\0" * (len(value) % 2)
        else:
            directory += value.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", 8) + directory + b"\0\0\0\0" + values
    return head.ljust(strip_at, b"\0") + data
