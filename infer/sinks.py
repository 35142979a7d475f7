"""The files of an image and of a slide: which exist, which are missing, and how they are written.

The jobs here run in the worker processes.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy

from infer.grid import BlockGrid, Planes
from infer.options import TileOptions
from infer.provenance import RUN_KEY, was_made_so
from infer.segment import hand_over, segment
from infer.spool import Spool
from infer.stitch import Stitcher
from misc.files import atomic_path
from misc.formats.labels import prediction_keys
from misc.formats.nuclei_json import iter_json, read_header, read_json, write_json
from misc.formats.qupath import qupath_xy, to_qupath, write_geojson
from misc.nuclei import Nuclei
from misc.nuclei_features import diameters_um
from misc.slides.images import read_image
from misc.slides.remote import upload
from misc.type_info import TypeInfo
from misc.viz_utils import visualize_instances_dict
from misc.workers import SharedArray
from models.hovernet.post_proc import PostProc


def count_types(nuclei: Nuclei) -> Counter:
    """Return the number of nuclei of each type (`None` without types)."""
    return Counter([None] * len(nuclei) if nuclei.types is None else nuclei.types.tolist())


# ---------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class ImageSpec:
    """What to write of an image of `mpp` um per px, of which each is `scale` px of the network's plane; `header` is the
    JSON file's."""

    options: TileOptions
    nr_types: int | None
    post_proc: PostProc
    type_info: TypeInfo
    header: dict[str, Any]
    mpp: float
    scale: float

    def paths(self, name: str) -> dict[str, Path]:
        """Return the files of one image; the JSON file is written last, so it stands for all of them.

        Files for QuPath that an earlier run wrote are included, so that no old ones stay beside newer results.
        """
        out = self.options.output_dir
        paths = {"mat": out / "mat" / f"{name}.mat", "overlay": out / "overlay" / f"{name}.png"}
        for kind in ("tsv", "geojson"):
            path = out / "qupath" / f"{name}.{kind}"
            if self.options.save_qupath or os.path.exists(path):  # False for a name that is too long
                paths[kind] = path
        return {**paths, "json": out / "json" / f"{name}.json"}

    def missing(self, name: str) -> frozenset[str]:
        """Return which files have to be written, as kinds of `paths`.

        All of them, `json` among them, where the network has to run; others alone where the JSON file is enough.
        """
        paths = self.paths(name)
        everything = frozenset(paths)
        known = was_made_so(paths["json"], self.header[RUN_KEY])
        if known is None:
            return everything
        missing = frozenset(kind for kind, path in paths.items() if not path.exists())
        lacks_raw = known and self.options.save_raw_map and not holds_raw(paths["mat"])
        return everything if "mat" in missing or lacks_raw else missing


@dataclass(frozen=True)
class ImageResult:
    """Number of nuclei of an image by type and by um; `dropped` ones have an outline of under three points."""

    dropped: int
    by_type: Counter
    diameters_um: Counter


@dataclass(frozen=True)
class ImageJob:
    """From the maps of an image, (C, h, w) float32 in the network's plane, to its files, each written atomically.

    `image` is (H, W, 3) uint8 RGB; its files are called `name`; `file_name` is its own, extension included.
    """

    spec: ImageSpec
    name: str
    file_name: str
    image: SharedArray
    maps: SharedArray

    def run(self) -> ImageResult:
        """Find the nuclei and write them.

        First removes the old JSON file: a run that stops halfway must not leave it beside newer files.
        """
        spec, paths, image, maps = self.spec, self.spec.paths(self.name), self.image.array, self.maps.array
        whole = (0, 0, *image.shape[:2])
        planes = Planes(tuple(maps.shape[1:]), tuple(image.shape[:2]))
        inst_map, nuclei, dropped = segment(maps, spec.nr_types, planes, whole, whole, spec.post_proc)
        overlay = _draw_overlay(image, nuclei, spec)
        raw = np.moveaxis(maps, 0, -1) if spec.options.save_raw_map or holds_raw(paths["mat"]) else None
        paths["json"].unlink(missing_ok=True)
        _write_mat(paths["mat"], inst_map, nuclei, raw, spec.type_info)
        _write_pictures(paths, paths.keys(), overlay, nuclei, spec)
        height, width = image.shape[:2]
        slide = {"name": self.file_name, "width": width, "height": height, "scale": 1.0, "mpp": spec.header.get("mpp")}
        write_json(paths["json"], nuclei, mag=None, header={**spec.header, "slide": slide})
        return ImageResult(dropped, count_types(nuclei), diameters_um(nuclei, spec.mpp))


@dataclass(frozen=True)
class CompleteImageJob:
    """Writes files, `kinds` of `ImageSpec.paths`, that are missing beside the JSON file of a finished image."""

    spec: ImageSpec
    name: str
    image_path: Path
    kinds: frozenset[str]

    def run(self) -> ImageResult:
        paths = self.spec.paths(self.name)
        nuclei, _ = read_json(paths["json"])
        overlay = _draw_overlay(read_image(self.image_path), nuclei, self.spec) if "overlay" in self.kinds else None
        _write_pictures(paths, self.kinds, overlay, nuclei, self.spec)
        return ImageResult(0, count_types(nuclei), diameters_um(nuclei, self.spec.mpp))


def holds_raw(mat_path: Path) -> bool:
    """Tell whether a `.mat` file holds the network's maps; `False` for a damaged or missing file."""
    try:
        return any(name == "raw" for name, *_ in scipy.io.whosmat(mat_path))
    except Exception:  # a damaged file can make scipy raise almost anything
        return False


def _write_mat(path: Path, inst_map: np.ndarray, nuclei: Nuclei, raw: np.ndarray | None, type_info: TypeInfo) -> None:
    content = prediction_keys(None if nuclei.types is None else type_info)
    content |= {"inst_map": inst_map, "inst_uid": nuclei.ids[:, None], "inst_centroid": nuclei.centroids_xy}
    if nuclei.types is not None:
        content["inst_type"] = nuclei.types[:, None]
    if raw is not None:
        content["raw"] = raw
    with atomic_path(path) as temporary:
        scipy.io.savemat(temporary, content)


def _write_pictures(
    paths: Mapping[str, Path], kinds: Collection[str], overlay: np.ndarray | None, nuclei: Nuclei, spec: ImageSpec
) -> None:
    """Write the files to look at, of the `kinds` of `paths` asked for: the overlay and the files for QuPath."""
    if "overlay" in kinds:
        with atomic_path(paths["overlay"]) as temporary:
            if not cv2.imwrite(str(temporary), cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR)):
                raise OSError(f"cannot write {paths['overlay']}")
    if "tsv" in kinds:
        types = [None] * len(nuclei) if nuclei.types is None else nuclei.types
        to_qupath(paths["tsv"], qupath_xy(nuclei.centroids_xy), types, spec.type_info)
    if "geojson" in kinds:
        write_geojson(paths["geojson"], [nuclei], spec.type_info)


def _draw_overlay(image: np.ndarray, nuclei: Nuclei, spec: ImageSpec) -> np.ndarray:
    style = {"draw_dot": spec.options.draw_dot, "line_thickness": spec.options.line_thickness}
    return visualize_instances_dict(image, nuclei.to_dict(), type_colour=spec.type_info, **style)


# ---------------------------------------------------------------------------------------------- slides


@dataclass(frozen=True)
class BlockJob:
    """From the maps of a block of a slide, (C, h, w) float32, to its nuclei in the spool."""

    blocks: BlockGrid
    planes: Planes
    index: int
    maps: SharedArray
    nr_types: int | None
    post_proc: PostProc
    spool: Spool

    def run(self) -> int:
        """Return how many nuclei the block owns."""
        block = self.blocks.block(self.index)
        seen = (self.planes, block.outer, block.core)
        inst_map, nuclei, _ = segment(self.maps.array, self.nr_types, *seen, self.post_proc)
        part = hand_over(self.blocks, self.index, inst_map, nuclei)
        self.spool.write(part)
        return int(part.owned.sum())


@dataclass(frozen=True)
class SlideJob:
    """Stitches the `expected` blocks of a slide, all of which are in the spool, and writes its files.

    `paths` are by kind: `json`, and `qupath` where it is wanted; `mag` and `header` are the JSON file's.
    """

    blocks: BlockGrid
    expected: list[int]
    spool: Spool
    paths: dict[str, Path]
    mag: float
    header: dict[str, Any]
    name: str
    type_info: TypeInfo

    def run(self) -> tuple[Counter, Counter, float]:
        """Return the number of nuclei of each type (`None` without types), of each diameter, and the seconds."""
        start, found, diameters = time.perf_counter(), Counter(), Counter()
        if "qupath" in self.paths:  # wherever this stops, no old outlines stay beside new nuclei
            self.paths["qupath"].unlink(missing_ok=True)
        write_json(self.paths["json"], self._stitched(found, diameters), self.mag, self.header)
        if "qupath" in self.paths:
            write_slide_qupath(self.paths, self.name, self.type_info)
        return found, diameters, time.perf_counter() - start

    def _stitched(self, found: Counter, diameters: Counter) -> Iterator[Nuclei]:
        stitcher = Stitcher(self.blocks, self.expected)
        for index in self.expected:
            for nuclei in stitcher.add(self.spool.read(index)):
                found.update(count_types(nuclei))
                diameters.update(diameters_um(nuclei, self.header["mpp"]))
                yield nuclei


@dataclass(frozen=True)
class UploadJob:
    """Does a job and uploads the files that it leaves, by kind; see `misc.slides.remote.upload`."""

    job: SlideJob
    files: dict[str, Path]
    uri: str

    def run(self) -> tuple[Counter, Counter, float]:
        value = self.job.run()
        upload(self.files, self.uri)
        return value


def write_slide_qupath(paths: Mapping[str, Path], name: str, type_info: TypeInfo) -> None:
    """Write the outlines of a slide for QuPath from its JSON file."""
    source = paths["json"]
    try:
        slide = read_header(source)["slide"]
        scale, origin_xy = float(slide["scale"]), tuple((slide["bounds"] or (0, 0))[:2])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source} does not say the scale of its slide; --overwrite makes it again") from error
    write_geojson(paths["qupath"], iter_json(source), type_info, scale, name=name, origin_xy=origin_xy)
