"""From the prediction map of one tile to its files; runs in the worker processes and needs no torch."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy.io

from misc.files import atomic_path
from misc.formats.labels import prediction_keys
from misc.formats.nuclei_json import read_json, write_json
from misc.formats.qupath import qupath_xy, to_qupath, write_geojson
from misc.nuclei import Nuclei
from misc.slides.images import read_image, resize
from misc.type_info import TypeInfo
from misc.viz_utils import visualize_instances_dict
from models.hovernet.post_proc import count_dropped, process_nuclei


@dataclass(frozen=True)
class TileSpec:
    """What to write, the same for every tile of a run."""

    output_dir: Path
    nr_types: int | None
    type_info: TypeInfo
    header: dict[str, Any]
    type_probs: bool
    draw_dot: bool
    line_thickness: int
    save_qupath: bool
    save_raw_map: bool

    def paths(self, name: str) -> dict[str, Path]:
        """Return the files of one tile; the JSON file is written last, so it stands for all of them.

        Files for QuPath that an earlier run wrote are among them, lest they be left beside newer results.
        """
        paths = {"mat": self.output_dir / "mat" / f"{name}.mat", "overlay": self.output_dir / "overlay" / f"{name}.png"}
        for kind in ("tsv", "geojson"):
            path = self.output_dir / "qupath" / f"{name}.{kind}"
            if self.save_qupath or path.exists():
                paths[kind] = path
        return {**paths, "json": self.output_dir / "json" / f"{name}.json"}


@dataclass(frozen=True)
class TileJob:
    """One tile that the network is done with.

    Attributes:
        name: what its files are called; `file_name` is the name of the image, extension included.
        image: (H, W, 3) uint8, RGB, as read from the file.
        pred_map: (h, w, C) float32, at the network's resolution.
    """

    spec: TileSpec
    name: str
    file_name: str
    image: np.ndarray
    pred_map: np.ndarray


@dataclass(frozen=True)
class MissingFiles:
    """Files of a finished tile that can be made from its JSON file: `kinds` of `TileSpec.paths`."""

    spec: TileSpec
    name: str
    image_path: Path
    kinds: frozenset[str]


@dataclass(frozen=True)
class TileResult:
    """What was found in one tile.

    Attributes:
        dropped: nuclei of the instance map that are in no list, since their outline has fewer than three points.
        by_type: number of nuclei for each type id (`None` without types).
    """

    nr_nuclei: int
    dropped: int
    by_type: dict[int | None, int]
    seconds: float


def finish_tile(job: TileJob) -> TileResult:
    """Post-process one tile and write its files, each whole or not at all.

    The old JSON file goes before the first one is replaced: it would say that they are all its own.
    """
    start = time.perf_counter()
    spec, paths = job.spec, job.spec.paths(job.name)
    inst_map, nuclei, dropped = segment_tile(job.pred_map, job.image.shape[:2], spec)
    overlay = _draw_overlay(job.image, nuclei, spec)
    save_raw = spec.save_raw_map or holds_raw(paths["mat"])
    paths["json"].unlink(missing_ok=True)
    _write_mat(paths["mat"], inst_map, nuclei, job.pred_map if save_raw else None, spec.type_info)
    _write_pictures(paths, paths.keys(), overlay, nuclei, spec)
    height, width = job.image.shape[:2]
    slide = {"name": job.file_name, "width": width, "height": height, "scale": 1.0, "mpp": spec.header.get("mpp")}
    write_json(paths["json"], nuclei, mag=None, header={**spec.header, "slide": slide})
    return TileResult(len(nuclei), dropped, _count_types(nuclei), time.perf_counter() - start)


def complete_tile(job: MissingFiles) -> TileResult:
    """Write files that are missing beside the JSON file of a finished tile."""
    start, paths = time.perf_counter(), job.spec.paths(job.name)
    nuclei, _ = read_json(paths["json"])
    overlay = _draw_overlay(read_image(job.image_path), nuclei, job.spec) if "overlay" in job.kinds else None
    _write_pictures(paths, job.kinds, overlay, nuclei, job.spec)
    return TileResult(len(nuclei), 0, _count_types(nuclei), time.perf_counter() - start)


def holds_raw(mat_path: Path) -> bool:
    """Tell whether a `.mat` file holds the network's maps; a damaged one, or none, does not."""
    try:
        return any(name == "raw" for name, *_ in scipy.io.whosmat(mat_path))
    except Exception:  # a damaged file can make scipy raise almost anything
        return False


def _count_types(nuclei: Nuclei) -> dict[int | None, int]:
    found = [None] * len(nuclei) if nuclei.types is None else nuclei.types.tolist()
    return {type_id: found.count(type_id) for type_id in sorted(set(found), key=lambda t: t or 0)}


def segment_tile(pred_map: np.ndarray, shape_yx: tuple[int, int], spec: TileSpec) -> tuple[np.ndarray, Nuclei, int]:
    """Find the nuclei of a tile, on the grid of its image.

    Where the network saw a smaller picture than the file holds, its maps are enlarged first: on the 14 images
    of an earlier checkpoint's table that gave Dice .801 instead of .772. Where it saw a larger one, its nuclei
    are found there, since they would be too small on the image's own grid, and then mapped back.

    Returns:
        (H, W) int32 instance map and the nuclei, both in px of the image, and how many nuclei have no outline.
    """
    net_shape = pred_map.shape[:2]
    maps = pred_map if net_shape[0] >= shape_yx[0] else _enlarge(pred_map, shape_yx, spec.nr_types)
    nr_channels = 3 if spec.nr_types is None else 4
    probs = maps[..., nr_channels:] if spec.type_probs and spec.nr_types else None
    inst_map, nuclei = process_nuclei(maps[..., :nr_channels], spec.nr_types, class_probs_map=probs)
    dropped = count_dropped(inst_map, nuclei)  # before the map shrinks: small nuclei may vanish from it
    if inst_map.shape != tuple(shape_yx):
        fy, fx = shape_yx[0] / inst_map.shape[0], shape_yx[1] / inst_map.shape[1]
        inst_map, nuclei = resize(inst_map, shape_yx, nearest=True), nuclei.scale(fy, fx)
    return inst_map, nuclei, dropped


def _enlarge(pred_map: np.ndarray, shape_yx: tuple[int, int], nr_types: int | None) -> np.ndarray:
    """Resize maps linearly, but type ids, which have no in-between, by nearest neighbour."""
    if nr_types is None:
        return resize(pred_map, shape_yx)
    types = resize(np.ascontiguousarray(pred_map[..., 0]), shape_yx, nearest=True)
    return np.dstack([types, resize(np.ascontiguousarray(pred_map[..., 1:]), shape_yx)])


def _write_mat(path: Path, inst_map: np.ndarray, nuclei: Nuclei, raw: np.ndarray | None, type_info: TypeInfo) -> None:
    content = {
        "inst_map": inst_map,
        "inst_uid": nuclei.ids[:, None],
        "inst_centroid": nuclei.centroids_xy,
        **prediction_keys(None if nuclei.types is None else type_info),
    }
    if nuclei.types is not None:
        content["inst_type"] = nuclei.types[:, None]
    if raw is not None:
        content["raw"] = raw
    with atomic_path(path) as temporary:
        scipy.io.savemat(temporary, content)


def _write_pictures(
    paths: Mapping[str, Path], kinds: Collection[str], overlay: np.ndarray | None, nuclei: Nuclei, spec: TileSpec
) -> None:
    """Write what is for looking at, of the `kinds` of `paths` asked for: the overlay, and the files for QuPath."""
    if "overlay" in kinds:
        _write_overlay(paths["overlay"], overlay)
    if "tsv" in kinds:
        types = [None] * len(nuclei) if nuclei.types is None else nuclei.types
        to_qupath(paths["tsv"], qupath_xy(nuclei.centroids_xy), types, spec.type_info)
    if "geojson" in kinds:
        write_geojson(paths["geojson"], [nuclei], spec.type_info)


def _draw_overlay(image: np.ndarray, nuclei: Nuclei, spec: TileSpec) -> np.ndarray:
    return visualize_instances_dict(
        image,
        nuclei.to_dict(),
        draw_dot=spec.draw_dot,
        type_colour=spec.type_info,
        line_thickness=spec.line_thickness,
    )


def _write_overlay(path: Path, overlay: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        if not cv2.imwrite(str(temporary), cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR)):
            raise OSError(f"cannot write {path}")
