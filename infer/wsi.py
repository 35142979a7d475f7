"""Slide inference: a folder of slides in, one JSON of nuclei a slide out; any size, bounded memory, resumable."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from infer import base
from infer.grid import patch_grid, tile_grid
from infer.options import WsiOptions
from infer.spool import Spool, locked
from infer.stitch import Stitcher
from infer.tile_stream import POST_PROC_BYTES_PX
from infer.workers import WorkerPool, limit_workers
from infer.wsi_stream import Plan, SlideFailedError, SlideStream, finish_wsi_tile
from misc.export_qupath import write_geojson
from misc.files import atomic_path, check_unique_stems, full_stem, list_files, write_atomic
from misc.machine import available_memory, reused_memory_pages
from misc.nuclei import Nuclei
from misc.nuclei_json import iter_json, read_header, write_json
from misc.tissue import TissueMask, load_mask, otsu_mask, thumbnail
from misc.wsi_handler import MPP_TIMES_MAG, FileHandler, SlideError, get_file_handler, is_slide

logger = logging.getLogger(__name__)

# Magnification at which published networks were trained, for checkpoints that do not say their own.
DEFAULT_MAG = 40.0
# Share of the free memory that post-processing workers may take.
WORKER_MEMORY = 0.5
# Folder in the output folder for the spool, when no --cache_path is given.
CACHE_DIR = ".cache"
BUSY = "another run is at work on it"
SUMMARY_COLUMNS = ("slide", "status", "reason", "nuclei", "seconds", "mpp", "magnification", "tissue_share")


@dataclass
class _Row:
    """A line of the summary."""

    slide: str
    status: str = "failed"
    reason: str = ""
    nuclei: int | str = ""
    seconds: float | str = ""
    mpp: float | str = ""
    magnification: float | str = ""
    tissue_share: float | str = ""


class InferManager(base.InferManager):
    """Runs inference on a folder of slides."""

    def process_wsi_list(self, run_args: Mapping[str, Any] | WsiOptions) -> base.Report:
        """Segment every slide of a folder; write `json/`, and `qupath/ thumb/ mask/` where asked, and `summary.csv`.

        Slides whose files are there are skipped, unless `overwrite` is set. Files that are no slides are listed and
        passed over. A bad slide is reported, the others are done.

        Args:
            run_args: options by name, see `WsiOptions`.

        Raises:
            FileNotFoundError: no input folder, or no slide in it.
            ValueError: an option makes no sense, or two slides would write the same files.
        """
        options = run_args if isinstance(run_args, WsiOptions) else WsiOptions.from_dict(run_args)
        paths = find_slides(options)
        run = _Run(self, options)
        workers = run.nr_workers()
        pool = WorkerPool(finish_wsi_tile, workers, queue=workers + 2)  # each that waits holds the maps of a tile
        rows: list[_Row] = []
        interrupted = True
        on_cpu = run.predictor.device.type == "cpu"
        try:
            with reused_memory_pages() if on_cpu else contextlib.nullcontext():
                for path in paths:
                    rows.append(run.one(path, pool))
                for place, row in enumerate(rows):
                    if row.reason == BUSY:  # the run that had it may be dead by now
                        run.report.skipped.remove(full_stem(row.slide))
                        rows[place] = run.one(paths[place], pool)
            interrupted = False
        finally:
            pool.close(cancel=interrupted)
            if rows:
                write_summary(options.output_dir / "summary.csv", rows)
            if interrupted:
                logger.warning("stopped: %d of %d slides; the same command goes on", len(rows), len(paths))
        return run.report


def find_slides(options: WsiOptions) -> list[Path]:
    """Return the slides of the input folder; what is no slide is listed in the log.

    Raises:
        FileNotFoundError: there is none.
        ValueError: two have the same stem.
    """
    files = list_files(options.input_dir, options.pattern, options.recursive)
    slides = [path for path in files if is_slide(path)]
    others = [path.name for path in files if path not in set(slides)]
    if others:
        logger.info("%d files are no slides and are passed over: %s", len(others), ", ".join(others))
    if not slides:
        raise FileNotFoundError(f"no slide matches {options.pattern} in {options.input_dir}")
    check_unique_stems(slides)
    return slides


def write_summary(path: Path, rows: list[_Row]) -> None:
    """Write what became of each slide as CSV; what earlier runs, or one beside this, say of slides they did stays."""
    lines: dict[str, dict] = {}
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as handle:
            lines = {line["slide"]: line for line in csv.DictReader(handle) if line.keys() == set(SUMMARY_COLUMNS)}
    for row in rows:
        if row.status != "skipped" or lines.get(row.slide, {}).get("status") != "done":
            lines[row.slide] = vars(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, SUMMARY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[slide] for slide in sorted(lines))
    write_atomic(path, text.getvalue())


class _Run:
    """One run over a folder."""

    def __init__(self, manager: InferManager, options: WsiOptions):
        if options.save_type_probs and not manager.nr_types:
            raise ValueError("--save_type_probs needs a network with types; this checkpoint has none")
        self.manager = manager
        self.options = options
        self.window = manager.patch_shapes(options)
        self.predictor = manager.predictor(options)
        self.report = base.Report()
        trained_at = manager.checkpoint.meta.get("mpp")
        self.proc_mag = options.proc_mag or (MPP_TIMES_MAG / float(trained_at) if trained_at else DEFAULT_MAG)
        self.weights = hashlib.sha256(Path(manager.checkpoint.path).read_bytes()).hexdigest()
        for folder in self.paths("x").values():
            folder.parent.mkdir(parents=True, exist_ok=True)

    def paths(self, name: str) -> dict[str, Path]:
        """Return the files of a slide."""
        out, options = self.options.output_dir, self.options
        paths = {"json": out / "json" / f"{name}.json"}
        if options.save_qupath:
            paths["qupath"] = out / "qupath" / f"{name}.geojson"
        if options.save_thumb:
            paths["thumb"] = out / "thumb" / f"{name}.png"
        if options.save_mask:
            paths["mask"] = out / "mask" / f"{name}.png"
        return paths

    def nr_workers(self) -> int:
        """Limit the post-processing workers by processors and by the memory that a tile takes."""
        asked = limit_workers("--nr_post_proc_workers", self.options.nr_post_proc_workers, 1 << 30)
        side = self.options.tile_shape + 2 * self.options.ambiguous_size
        need = (POST_PROC_BYTES_PX + 8 * self.predictor.channels) * side**2
        fit = max(int(available_memory() * WORKER_MEMORY) // need, 1)
        if asked > fit:
            logger.info("--nr_post_proc_workers=%d -> %d: a tile takes %.1f GB", asked, fit, need / 2**30)
        return min(asked, fit)

    def one(self, path: Path, pool: WorkerPool) -> _Row:
        """Do a slide, whatever happens; returns its line of the summary."""
        name, row, start = full_stem(path), _Row(path.name), time.perf_counter()
        with locked(self.paths(name)["json"].parent / f".{name}.lock") as free:
            if not free:
                row.status, row.reason = "skipped", BUSY
            elif not self.options.overwrite and all(file.exists() for file in self.paths(name).values()):
                row.status, row.reason = "skipped", "its results are there"
            else:
                try:
                    self._segment(path, name, pool, row)
                    row.status = "done"
                except Exception as error:
                    self._failed(name, row, error)
                    for _ in pool.wait_all():  # what is still under way belongs to this slide
                        pass
        row.seconds = round(time.perf_counter() - start, 1)
        if row.status == "skipped":
            self.report.skipped.append(name)
            logger.info("%s: skipped, %s", path.name, row.reason)
        elif row.status == "done":
            self.report.done.append(name)
        return row

    def _failed(self, name: str, row: _Row, error: Exception) -> None:
        known = isinstance(error, (SlideError, SlideFailedError, ValueError, OSError))
        row.reason = " ".join(str(error).split()) if known else f"{type(error).__name__}: {error}"
        self.report.failed[name] = row.reason
        logger.error("%s: %s\n%s", row.slide, row.reason, getattr(error, "details", ""), exc_info=not known)

    def _segment(self, path: Path, name: str, pool: WorkerPool, row: _Row) -> None:
        options, files = self.options, self.paths(name)
        with self._open(path) as handler:
            tissue = self._tissue(handler, name, files)
            plan = self._plan(handler, tissue)
            self._describe(handler, tissue, plan, row)
            header = self._header(handler)
            fingerprint = self._fingerprint(path, plan)
        spool = Spool(options.cache_path or options.output_dir / CACHE_DIR, name, fingerprint)
        stream = SlideStream(
            plan,
            lambda: self._open(path),
            self.predictor,
            pool,
            self.manager.nr_types,
            limit_workers("--nr_inference_workers", options.nr_inference_workers, len(plan.tiles)),
            options.chunk_shape,
            spool.write,
        )
        finished = spool.rows()
        if finished:
            logger.info("%s: %d of %d rows of tiles are there already", path.name, len(finished), plan.tiles.rows)
        try:
            total = (
                int(plan.tissue.sum()) * plan.patches.patch_output**2
            )  # whole px: shares of a Mpx add up to too much
            with tqdm(total=total, unit="px", unit_scale=True, desc=path.name, smoothing=0.1) as bar:
                stream.run(finished, bar)
            self._write(spool, plan, files, header, stream, row)
        except (SlideError, SlideFailedError):
            spool.remove()  # going on would end at the same place
            raise
        spool.remove()
        times = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in stream.seconds.items())
        logger.info("%s: %d nuclei; %s", path.name, row.nuclei, times)

    def _open(self, path: Path) -> FileHandler:
        handler = get_file_handler(path, mpp=self.options.mpp, mag=self.options.mag)
        handler.prepare_reading(read_mag=self.proc_mag)
        return handler

    def _tissue(self, handler: FileHandler, name: str, files: dict[str, Path]) -> TissueMask:
        thumb = None
        if self.options.input_mask_dir is not None:
            given = self.options.input_mask_dir / f"{name}.png"
            tissue = load_mask(given, handler.shape_yx)
        else:
            thumb = thumbnail(handler)
            tissue = otsu_mask(thumb)
        if "thumb" in files:
            with atomic_path(files["thumb"]) as temporary:
                rgb = thumbnail(handler) if thumb is None else thumb
                cv2.imwrite(str(temporary), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        if "mask" in files:
            tissue.save(files["mask"])
        return tissue

    def _plan(self, handler: FileHandler, tissue: TissueMask) -> Plan:
        shape = handler.shape_yx
        patches = patch_grid(shape, *self.window)
        corners = patches.output_tl_yx
        covered = tissue.covers(np.hstack([corners, corners + patches.patch_output]), shape)
        tiles = tile_grid(shape, self.options.tile_shape, self.options.ambiguous_size)
        return Plan(patches, tiles, covered.reshape(patches.rows, patches.cols))

    def _describe(self, handler: FileHandler, tissue: TissueMask, plan: Plan, row: _Row) -> None:
        """Say what the slide is, and what is odd about it."""
        data, (height, width) = handler.metadata, handler.shape_yx
        mpp = float(data["base_mpp"][0])
        row.mpp, row.magnification, row.tissue_share = round(mpp, 4), data["base_mag"], round(tissue.share, 4)
        logger.info(
            "%s: %d x %d px at %.4g um/px (%s; %gx), read at %gx: %d x %d px, "
            "%.0f %% tissue (%s), %d patches, %d tiles",
            *(handler.path.name, *data["base_shape"].tolist(), mpp, data["mpp_from"], data["base_mag"], self.proc_mag),
            *(width, height, 100 * tissue.share, tissue.source, plan.tissue.sum(), len(plan.tiles)),
        )
        for note in [*data["notes"], handler.upsampling(read_mag=self.proc_mag)]:
            if note:
                logger.warning("%s", note)
        if not plan.tissue.any():
            logger.warning("%s: no tissue found; its JSON will hold no nuclei", handler.path.name)

    def _header(self, handler: FileHandler) -> dict[str, Any]:
        (width, height), mpp = handler.metadata["base_shape"].tolist(), float(handler.metadata["base_mpp"][0])
        scale = handler.scale_yx[1]
        slide = {"name": handler.path.name, "width": width, "height": height, "scale": scale, "mpp": mpp}
        return self.manager.header(mpp=mpp * scale, slide=slide)

    def _fingerprint(self, path: Path, plan: Plan) -> dict[str, Any]:
        state, options = path.stat(), self.options
        return {
            "slide": [str(path.resolve()), state.st_size, state.st_mtime_ns],
            "output_dir": str(options.output_dir.resolve()),  # two runs may share a cache folder
            "weights": self.weights,
            "grids": [plan.patches, plan.tiles],
            "tissue": hashlib.sha256(np.packbits(plan.tissue).tobytes()).hexdigest(),
            "network": [self.predictor.precision, options.save_type_probs, base.VERSION],
            "resolution": [self.proc_mag, options.mpp, options.mag],
        }

    def _write(self, spool: Spool, plan: Plan, files: dict[str, Path], header: dict, stream, row: _Row) -> None:
        """Join the tiles, and write the nuclei as a stream."""
        start = time.perf_counter()
        row.nuclei = write_json(files["json"], self._counted(stitched(spool, plan)), mag=self.proc_mag, header=header)
        if "qupath" in files:
            scale = read_header(files["json"])["slide"]["scale"]
            write_geojson(files["qupath"], iter_json(files["json"]), self.manager.type_info_dict, scale)
        stream.seconds["joining and writing"] += time.perf_counter() - start

    def _counted(self, parts: Iterator[Nuclei]) -> Iterator[Nuclei]:
        for part in parts:
            types, counts = (None, len(part)) if part.types is None else np.unique(part.types, return_counts=True)
            self.report.found.update({None: counts} if types is None else dict(zip(types.tolist(), counts.tolist())))  # noqa: B905
            yield part


def stitched(spool: Spool, plan: Plan) -> Iterator[Nuclei]:
    """Yield the nuclei of a slide from its finished tiles; only the rows that still meet are held."""
    expected = plan.expected()
    if not expected:
        return
    stitcher = Stitcher(plan.tiles, expected)
    for row in sorted({index // plan.tiles.cols for index in expected}):
        for part in spool.read(row):
            yield from stitcher.add(part)
