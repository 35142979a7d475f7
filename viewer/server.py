"""The viewer's server: pages, tiles and values for browsers on this machine only.

It listens only on the loopback address. It answers only requests to a name of that address, so that no page of another
site can reach it by a name of its own. It only reads, and no part of a request becomes a path: files of the page are
held in memory by name, and slides have numbers.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from misc.batch import reason
from viewer.slides import Library
from viewer.tiles import MAX_NUCLEI_ZOOM, TILE_PX, draw_density, jpeg, png

HOST = "127.0.0.1"
HOST_NAMES = (HOST, "localhost")
STATIC = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
KINDS |= {".svg": "image/svg+xml"}
# The page may load only from this server; tiles are also images in memory.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# The address of a tile holds the stamp of its files, so a browser may keep it.
KEEP = "private, max-age=86400, immutable"
IDLE_S = 60  # seconds after which an idle connection is closed
JPEG, PNG, JSON = "image/jpeg", "image/png", "application/json"

logger = logging.getLogger(__name__)


class Viewer:
    """Answers requests by their path; `routes` lists all that are allowed."""

    def __init__(self, library: Library):
        self.library = library
        self.pages = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in KINDS}
        number, whole = r"(\d{1,6})", r"(-?\d{1,3})"
        tile = rf"{whole}/(\d{{1,7}})_(\d{{1,7}})"
        self.routes: list[tuple[re.Pattern, Callable]] = [
            (re.compile(r"/slides\.json"), self.listing),
            (re.compile(rf"/slide/{number}/info\.json"), self.info),
            (re.compile(rf"/slide/{number}/thumbnail\.jpg"), self.thumbnail),
            (re.compile(rf"/slide/{number}/tile/{tile}\.jpg"), self.tile),
            (re.compile(rf"/slide/{number}/nuclei/([01])/(prob|area|dab|none)/{tile}\.png"), self.nuclei),
            (re.compile(rf"/slide/{number}/density/([01])/([0-9a-f]{{1,64}})/{tile}\.png"), self.density),
            (re.compile(rf"/slide/{number}/near/([01])/(-?[\d.]{{1,12}})_(-?[\d.]{{1,12}})\.json"), self.near),
        ]

    def answer(self, path: str) -> tuple[bytes, str, bool]:
        """Return the content at a path, its MIME type, and whether a browser may keep it.

        Raises:
            LookupError: there is nothing at this path.
            ValueError, OSError: a slide or its nuclei cannot be read.
        """
        name = path.removeprefix("/") or "index.html"
        if name in self.pages:
            return self.pages[name], KINDS[Path(name).suffix], False
        for pattern, answer in self.routes:
            if found := pattern.fullmatch(path):
                return answer(*found.groups())
        raise LookupError(path)

    def listing(self):
        return _json(self.library.listing())

    def info(self, number: str):
        return _json(self.library.slide(int(number)).info())

    def thumbnail(self, number: str):
        return self.library.thumbnail(int(number)), JPEG, True

    def tile(self, number: str, zoom: str, column: str, row: str):
        return jpeg(self.library.slide(int(number)).tiles.rgb(int(zoom), int(column), int(row))), JPEG, True

    def nuclei(self, number: str, which: str, value: str, zoom: str, column: str, row: str):
        slide = self.library.slide(int(number))
        if not slide.outline_zoom <= int(zoom) <= MAX_NUCLEI_ZOOM:
            raise LookupError(zoom)
        corner = np.array([int(column), int(row)]) * TILE_PX
        return png(slide.outlines(int(which), value, int(zoom), corner)), PNG, True

    def density(self, number: str, which: str, types: str, zoom: str, column: str, row: str):
        slide = self.library.slide(int(number))
        if not 0 <= -int(zoom) < slide.tiles.levels:
            raise LookupError(zoom)
        result, corner = slide.results[int(which)], np.array([int(column), int(row)]) * TILE_PX
        codes = [code for code in range(len(result.index.meta["types"])) if int(types, 16) >> code & 1]
        return png(draw_density(result.index, result.facts.scale, codes, int(zoom), corner)), PNG, True

    def near(self, number: str, which: str, x: str, y: str):
        return _json(self.library.slide(int(number)).results[int(which)].near(float(x), float(y)))


def _json(content) -> tuple[bytes, str, bool]:
    return json.dumps(content).encode(), JSON, False


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    protocol_version = "HTTP/1.1"  # one connection for many tiles
    server_version, sys_version = "viewer", ""
    timeout = IDLE_S
    disable_nagle_algorithm = True  # else a body waits until the browser acknowledges its headers

    def do_GET(self) -> None:
        """Answer a request."""
        host = self.headers.get("Host", "").rpartition(":")
        if (host[0] or host[2]) not in HOST_NAMES:
            self._send(HTTPStatus.MISDIRECTED_REQUEST, b"open 127.0.0.1 or localhost", "text/plain")
            return
        try:
            body, kind, keep = self.server.viewer.answer(self.path.partition("?")[0])
        except LookupError:
            self._send(HTTPStatus.NOT_FOUND, b"not found", "text/plain")
        except (ValueError, OSError, MemoryError) as error:
            logger.warning("%s", reason(error))
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, reason(error).encode(), "text/plain; charset=utf-8")
        else:
            self._send(HTTPStatus.OK, body, kind, keep and "?" in self.path)

    def _send(self, status: HTTPStatus, body: bytes, kind: str, keep: bool = False) -> None:
        self.send_response(status)
        headers = HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}
        headers["Cache-Control"] = KEEP if keep else "no-store"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, text: str, *values) -> None:
        """Log requests only at debug level."""
        logger.debug(text, *values)


class Server(ThreadingHTTPServer):
    """The server; it listens once made, and `serve_forever` answers."""

    daemon_threads = True

    def __init__(self, library: Library, port: int = 0):
        self.viewer = Viewer(library)
        super().__init__((HOST, port), Handler)

    @property
    def address(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request, client_address) -> None:
        """Ignore browsers that left before their tile came."""
        logger.debug("a connection ended early", exc_info=True)
