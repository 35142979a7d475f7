"""Maps of blocks on disk, between the two stages of a run: `predict` (the network) and `segment` (nuclei).

A slide has a folder in `maps/`: a file for each block that sees tissue, and a manifest of what the maps depend on. The
files are lossless, so both stages together find what one run finds.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import blosc2_decode, blosc2_encode

from infer.grid import Box
from infer.provenance import OtherRunError, differences
from infer.spool import DAMAGED
from misc.files import atomic_path, write_atomic
from misc.workers import SharedArray
from models.hovernet.post_proc import KEEP

logger = logging.getLogger(__name__)

PREDICT, SEGMENT = "predict", "segment"
MAPS_DIR = "maps"
_MANIFEST = "manifest.json"
# Nuclei depend on it, maps do not: users may try other thresholds on the same maps.
_OF_NUCLEI = "post_proc"
# Zstandard on shuffled bytes halves our network's maps, and reduces those of glass to 0.02 %.
_PACKED = {"level": 3, "compressor": "zstd", "shuffle": "shuffle", "typesize": 4, "numthreads": 1}


@dataclass(frozen=True)
class StoredMaps:
    """Maps of a block in a file."""

    path: Path

    @property
    def array(self) -> np.ndarray:
        """Read the maps, (C, h, w) float32; raises `ValueError` where the file is damaged."""
        try:
            with np.load(self.path, allow_pickle=False) as arrays:  # checks what it reads
                height, width = arrays["shape_yx"].tolist()
                maps = np.empty((len(arrays) - 1, height, width), np.float32)
                for channel, plane in enumerate(maps):
                    plane[:] = np.frombuffer(blosc2_decode(arrays[f"{channel}"]), np.float32).reshape(plane.shape)
            return maps
        except DAMAGED as error:
            raise ValueError(f"{self.path} cannot be read ({error}); remove it, and run --stage={PREDICT}") from error


@dataclass(frozen=True)
class KeepJob:
    """Writes the maps of a block, (C, h, w) float32, to their file."""

    maps: SharedArray
    path: Path

    def run(self) -> None:
        maps = self.maps.array
        packed = {f"{i}": np.frombuffer(blosc2_encode(plane, **_PACKED), np.uint8) for i, plane in enumerate(maps)}
        with atomic_path(self.path) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, shape_yx=maps.shape[1:], **packed)


@dataclass(frozen=True)
class MapStore:
    """The maps of one slide; the caller holds the slide's lock."""

    folder: Path

    def path(self, block: int) -> Path:
        return self.folder / f"{block:06d}.npz"

    def blocks(self) -> set[int]:
        """Return which blocks are there; their files are whole."""
        return {int(path.stem) for path in self.folder.glob("[0-9]*.npz")}

    def nr_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("[0-9]*.npz"))

    def made(self) -> dict[str, Any] | None:
        """Return what the maps depend on; `None` where there are none."""
        try:
            return {"ink": KEEP} | json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def begin(self, settings: Mapping[str, Any], overwrite: bool) -> None:
        """Make the folder, or continue with the maps in it.

        Raises:
            OtherRunError: there are maps of other settings, and `--overwrite` is not given.
        """
        asked, made = _of_maps(settings), self.made()
        if made == asked:
            return
        if made is not None and not overwrite:
            raise OtherRunError(
                f"its maps were made with other settings ({differences(made, asked)}): give the same options, or "
                "--overwrite to make them again"
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write_atomic(self.folder / _MANIFEST, json.dumps(asked, indent=1))

    def say_need(self, slide: str, boxes: list[Box], channels: int) -> None:
        """Log the disk space that the missing maps may take, uncompressed."""
        px = sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in boxes)
        need, free = px * channels * np.dtype(np.float32).itemsize, shutil.disk_usage(self.folder).free
        logger.log(
            logging.WARNING if need > free else logging.INFO,
            "%s: maps take %.2f GB at most (usually half of it), and %.1f GB are free on the disk of %s",
            *(slide, need / 1e9, free / 1e9, self.folder),
        )

    def check(self, settings: Mapping[str, Any], expected: list[int]) -> None:
        """Refuse maps of other settings, and incomplete ones.

        Raises:
            FileNotFoundError: maps of blocks that are `expected` are not there.
            OtherRunError: they were made with other settings.
        """
        asked, made = _of_maps(settings), self.made()
        if made is not None and made != asked:
            raise OtherRunError(
                f"its maps were made with other settings ({differences(made, asked)}): give the options of "
                f"--stage={PREDICT}, or run that again with --overwrite"
            )
        missing = set(expected) - self.blocks()
        if made is None or missing:
            what = f"maps of {len(missing)} of {len(expected)} blocks are" if made else "its maps are"
            raise FileNotFoundError(f"{what} not in {self.folder}: run --stage={PREDICT} first")


def _of_maps(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what maps depend on, in the form that JSON gives back."""
    made = {name: settings[name] for name in settings if name != _OF_NUCLEI}
    made["ink"] = settings[_OF_NUCLEI].get("ink", KEEP)  # where nuclei in ink are dropped, maps have one channel more
    return json.loads(json.dumps(made, default=str))
