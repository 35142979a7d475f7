"""Inference on slides: a folder of them in, a JSON file of nuclei a slide out; any size, bounded memory, resumable."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infer.maps import MAPS_DIR, PREDICT, SEGMENT, KeepJob, MapStore, StoredMaps
from infer.options import WsiOptions
from infer.plan import READ_SIDE_PX, Plan, plan_slide
from infer.provenance import RUN_KEY, digest_if_any, is_made_so, made_with, was_made_so
from infer.run import POST_PROC_BYTES_PX, Report, Run, RunTask
from infer.run import InferManager as BaseManager
from infer.sinks import BlockJob, SlideJob, UploadJob, write_slide_qupath
from infer.source import SlideSource
from infer.spool import Spool, remove_finished
from misc.cli import VERSION
from misc.files import check_name_lengths, printable, remove_if_empty, remove_parts, short_stem
from misc.formats.nuclei_json import iter_json
from misc.locks import locked
from misc.machine import available_memory
from misc.shard import Shard
from misc.slides.cohort import CohortSlide, find_cohort
from misc.slides.folder import slide_files
from misc.slides.remote import fetch, read_uploaded_header, size_of, upload
from misc.slides.tissue import TissueMask, load_mask, otsu_mask, save_png, thumbnail, within_regions
from misc.summary import PREDICTED, UPLOADED, Row, Summary
from misc.text import counted
from misc.workers import Job, SharedArray, WorkerPool
from models.hovernet.net_desc import PATCH_SHAPES

logger = logging.getLogger(__name__)

# Folder for the spool in the output folder, when --cache_path is not given.
CACHE_DIR = ".cache"
# Share of the free memory that post-processing workers may take.
WORKER_MEMORY = 0.5
# Smallest margin of a block, px: a nucleus of 8 um at 0.25 um/px; epithelial nuclei are seldom larger.
MIN_AMBIGUOUS_PX = 32
BUSY = "another run is at work on it"
THERE = "its results are there"


class InferManager(BaseManager):
    """Runs inference on a folder or a table of slides; arguments and attributes: see `infer.run.InferManager`."""

    def process_wsi_list(
        self, run_args: Mapping[str, Any] | WsiOptions, slides: Sequence[Path] | None = None
    ) -> Report:
        """Segment every slide of a cohort; write `json/`, and `qupath/ thumb/ mask/` where asked, and `summary.csv`.

        Slides with finished nuclei are skipped, unless `overwrite` is set; only missing files are added. Files that are
        not slides are listed and left out. A bad slide is reported, and the run continues.

        Args:
            run_args: options of `run_infer.py wsi` by name, without dashes: `output_dir`, and `input_dir` or `slides`,
                are needed, `mpp` is the um per px of level 0. All others have the command's defaults.
            slides: files of the input folder; left out: all of the folder or table.

        Returns:
            The result for each slide, by its name without the extension. Its nuclei are in `json/<name>.json`, see
            `misc.formats.nuclei_json.read_json` (all of them) and `iter_json` (some at a time). They are in px of the
            plane of `proc_mag`; the entry `slide` of the file says how large level 0 is (`width`, `height`, px) and how
            to get there: `(x + 0.5) * scale - 0.5`.

        Raises:
            FileNotFoundError: no input folder or table, no slide in it, or no folder of masks.
            ValueError: an option is unknown or makes no sense, or two slides would write the same files.
        """
        options = run_args if isinstance(run_args, WsiOptions) else WsiOptions.from_dict(run_args)
        if slides is None:
            where = options.input_dir, options.slides, options.pattern, options.recursive
            cohort, unusable = find_cohort(*where, options.output_dir, options.scratch)
        else:
            cohort, unusable = [CohortSlide(path) for path in slides], {}
        run = _SlideRun(self, options)
        shard = run.shard or Shard(0, 1)
        for path, reason in shard.of(list(unusable.items())):
            run.refuse(path, reason)
        run.all(shard.of(cohort))
        return run.report


class _SlideRun(Run):
    """A run over slides."""

    def __init__(self, manager: InferManager, options: WsiOptions):
        super().__init__(manager, options)
        if options.input_mask_dir and not options.input_mask_dir.is_dir():
            raise FileNotFoundError(f"no such folder: {options.input_mask_dir} (--input_mask_dir)")
        if options.ambiguous_size < MIN_AMBIGUOUS_PX:
            logger.warning(
                "--ambiguous_size=%d is less than a nucleus needs (%d px): nuclei on the borders of blocks may be cut, "
                "or differ with --tile_shape",
                *(options.ambiguous_size, MIN_AMBIGUOUS_PX),
            )
        self.cache_dir = options.cache_path or options.output_dir / CACHE_DIR
        self._cache_is_ours = not self.cache_dir.exists() or options.cache_path is None
        self.shard = Shard.parse(options.shard) if options.shard else None
        self.summary = Summary(
            self.shard.part(options.output_dir) if self.shard else options.output_dir / "summary.csv"
        )
        names = ("proc_mag", "mag", "tile_shape", "ambiguous_size")
        self.fingerprint = manager.fingerprint(options) | {name: getattr(options, name) for name in names}
        for file in [*self.paths("x").values(), self.summary.path]:
            file.parent.mkdir(parents=True, exist_ok=True)

    def paths(self, name: str) -> dict[str, Path]:
        """Return the files of a slide; includes those of an earlier run: no old ones may stay beside new nuclei."""
        out, options = self.options.output_dir, self.options
        asked = {"qupath": options.save_qupath, "thumb": options.save_thumb, "mask": options.save_mask, "json": True}
        suffixes = {"qupath": "geojson", "json": "json"}
        paths = {kind: out / kind / f"{name}.{suffixes.get(kind, 'png')}" for kind in asked}
        return {kind: path for kind, path in paths.items() if asked[kind] or os.path.exists(path)}

    def refuse(self, path: Path, reason: str) -> None:
        """Report a file that cannot be opened; its stem may be a slide's, so it goes by its whole name."""
        name = printable(path.name)
        self.report.failed[name] = reason
        logger.error("%s", reason)
        self.summary.put(Row(name, reason=reason))

    def all(self, slides: list[CohortSlide]) -> None:
        """Do all slides; those that another run works on come last, since that run may have ended by then."""
        side = self.options.tile_shape + 2 * self.options.ambiguous_size
        need = (POST_PROC_BYTES_PX + 4 * self.predictor.channels) * side**2
        memory = int(available_memory() * WORKER_MEMORY)
        workers = self.workers(need, memory)
        tasks = todo = [SlideTask(self, slide) for slide in slides]
        if self.shard:  # `merge` reports the slides that this shard does not reach
            self.summary.expect({task.row.slide: task.slide.extra for task in tasks})
        try:
            while todo:
                limit = workers + 1  # each waiting job holds the maps of a block
                pool = WorkerPool(workers, limit, self.manager.workers)
                self.execute(todo, pool, self.readers(), 1, memory)
                todo = [task for task in todo if task.busy]
                for task in todo:
                    task.busy, task.last_try = False, True
        finally:
            for task in tasks:
                task.release()
            if self._cache_is_ours:
                remove_if_empty(self.cache_dir)
        try:
            self.summary.flush()
        except OSError as error:  # the results exist nevertheless
            reason = f"{self.summary.path} cannot be written ({error.strerror or error}); it lacks lines of this run"
            self.report.failed[self.summary.path.name] = reason
            logger.error("%s", reason)


class SlideTask(RunTask):
    """A slide of the run; holds the slide's lock from `prepare` to `release`."""

    def __init__(self, run: _SlideRun, slide: CohortSlide):
        super().__init__(slide.path)
        self.run, self.slide = run, slide
        self.row = Row(self.path.name)
        self.last_try = False  # when another run is at work on it
        self.stage = run.options.stage
        self.predicted = self.stage == SEGMENT
        self.maps = MapStore(run.options.output_dir / MAPS_DIR / short_stem(self.name))
        self._owner = run.options.output_dir.resolve()
        masks = run.options.input_mask_dir
        self._mask_path = slide.mask or (masks / f"{self.name}.png" if masks else None)
        self._held = contextlib.ExitStack()
        self._notes: list[str] = []
        self._spool: Spool | None = None

    # ------------------------------------------------------------------------------------------ before the network

    def prepare(self) -> Plan | None:
        """Lock and open the slide, find its tissue, and find what an earlier run has done."""
        self._start = time.perf_counter()
        if not self.slide.uri and not self.path.exists():
            raise FileNotFoundError(f"no such slide: {self.path}")
        lock = self.run.paths(self.name)["json"].with_name(f".{short_stem(self.name)}.lock")
        if not self._held.enter_context(locked(lock)):
            self.busy, self.skipped = not self.last_try, BUSY if self.last_try else None
            return None
        # checked under the lock, since another run may have written them until then
        self._files = self.run.paths(self.name)
        check_name_lengths(self._files.values())
        if self.slide.uri:
            size = size_of(self.slide.uri)
        else:
            size = sum(path.stat().st_size for path in slide_files(self.path))
        slide = {"slide_bytes": size, "mask": digest_if_any(self._mask_path)}
        if self.predicted:  # predicted on another machine; this one may lack that precision
            made = self.maps.made() or made_with(self._files["json"]) or {}
            slide |= {name: made[name] for name in ("precision",) if name in made}
        own = {"mpp": self.slide.mpp, "mag": self.slide.mag, "regions": digest_if_any(self.slide.regions)}
        self._depends = self.run.fingerprint | slide | {name: value for name, value in own.items() if value}
        if self._is_uploaded():
            return None
        wanted = self._wanted()
        for path in self._files.values():
            remove_parts(path)
        if "json" not in wanted:
            self._complete(wanted)
            return None
        return self._open(wanted)

    def _is_uploaded(self) -> bool:
        """Tell whether an earlier run has uploaded the nuclei."""
        uri, file = self.run.options.upload, self._files["json"]
        if not uri or self.run.options.overwrite or file.exists():
            return False
        header = read_uploaded_header(f"{uri}/json/{file.name}")
        if header is None or is_made_so(header.get(RUN_KEY), self._depends) is None:
            return False
        self.skipped = f"its results are in {uri}"
        self.row.nuclei = (self.run.summary.earlier(self.row.slide) or {}).get("nuclei", "")
        return True

    def _wanted(self) -> set[str]:
        """Return the files to write; all of them when the nuclei are new."""
        if self.run.options.overwrite or was_made_so(self._files["json"], self._depends) is None:
            return set(self._files)
        return {kind for kind, path in self._files.items() if not path.exists()}

    def _complete(self, wanted: set[str]) -> None:
        """Write missing files from finished nuclei, without the network."""
        remove_finished(self.run.cache_dir, self.name, self._owner, self._files["json"])
        if wanted & {"thumb", "mask"}:
            self._tissue(self._source(), wanted)
        if "qupath" in wanted:
            write_slide_qupath(self._files, self.name, self.run.manager.type_info_dict)
        self.skipped = "; ".join([THERE, *(f"{kind} added" for kind in sorted(wanted))])
        earlier = self.run.summary.earlier(self.row.slide) or {}
        self.row.nuclei = earlier.get("nuclei") or sum(map(len, iter_json(self._files["json"])))
        if self.run.options.upload:
            upload(self._files, self.run.options.upload)

    def _open(self, wanted: set[str]) -> Plan:
        run, options = self.run, self.run.options
        source = self.source = self._source()
        tissue = self._tissue(source, wanted)
        window = run.manager.window(options, source.planes.net_yx)
        phase = window == PATCH_SHAPES[run.manager.mode]
        side, margin = options.tile_shape, options.ambiguous_size
        plan = plan_slide(source.planes, window, side, margin, tissue, phase)
        there = self._there(plan)
        self._plan = plan = replace(plan, done=frozenset(there), read_side=min(READ_SIDE_PX, options.chunk_shape))
        self._describe(source, tissue, plan)
        return plan

    def _there(self, plan: Plan) -> Collection[int]:
        """Return the blocks that an earlier run has done; check that the maps of blocks to segment exist."""
        settings = self._spooled(plan)
        # other machines may see the slide under another path
        of_maps = settings | {"slide": self.slide.uri or [Path(path).name for path in slide_files(self.path)]}
        if self.stage == PREDICT:
            self.maps.begin(of_maps, self.run.options.overwrite)
            return self.maps.blocks()
        self._spool = Spool.of(self.run.cache_dir, self.name, self._owner, settings)
        self._held.callback(remove_if_empty, self._spool.folder)
        there = self._spool.blocks()
        if self.stage == SEGMENT:
            self.maps.check(of_maps, [index for index in plan.expected if index not in there])
        return there

    def _source(self) -> SlideSource:
        options, manager = self.run.options, self.run.manager
        if self.slide.uri:
            self._held.callback(shutil.rmtree, self.path.parent, ignore_errors=True)
            fetch(self.slide.uri, self.path)
        trained_at = float(manager.trained_at) if manager.trained_at else None
        mpp, mag = self.slide.mpp or options.mpp, self.slide.mag or options.mag
        source = SlideSource(self.path, mpp, mag, trained_at, options.proc_mag)
        self._held.callback(source.close)
        return source

    def _spooled(self, plan: Plan) -> dict[str, Any]:
        """Return all that the blocks in the spool depend on."""
        files = slide_files(self.path)
        return {
            **self._depends,
            "slide": self.slide.uri or [[str(path.resolve()), path.stat().st_mtime_ns] for path in files],
            "grids": [plan.planes, plan.patches, plan.blocks],
            "tissue": hashlib.sha256(np.packbits(plan.tissue).tobytes()).hexdigest(),
            "version": VERSION,
        }

    def _tissue(self, source: SlideSource, wanted: set[str]) -> TissueMask:
        """Find the tissue, and write its thumbnail and mask where asked for."""
        thumb = None
        if self._mask_path:
            tissue = load_mask(self._mask_path, source.planes.out_yx)
        else:
            thumb = source.use(thumbnail)
            tissue = otsu_mask(thumb)
        if self.slide.regions:
            tissue = within_regions(tissue, self.slide.regions, int(source.handler.metadata["base_shape"][0]))
        if "thumb" in wanted:
            save_png(self._files["thumb"], source.use(thumbnail) if thumb is None else thumb)
        if "mask" in wanted:
            tissue.save(self._files["mask"])
        return tissue

    def _describe(self, source: SlideSource, tissue: TissueMask, plan: Plan) -> None:
        """Log the facts of the slide and what is unusual about it."""
        data, (net_h, net_w) = source.handler.metadata, source.planes.net_yx
        mpp, row = float(data["base_mpp"][0]), self.row
        row.mpp, row.magnification, row.tissue_share = round(mpp, 4), data["base_mag"], round(tissue.share, 4)
        logger.info(
            "%s: %d x %d px at %.4g um/px (%s; %gx), read as %d x %d px, outlined at %gx, %.0f %% tissue (%s), %s, %s",
            *(self.path.name, *data["base_shape"].tolist(), mpp, data["mpp_from"], data["base_mag"], net_w, net_h),
            *(source.out_mag, 100 * tissue.share, tissue.source),
            *(counted(int(plan.tissue.sum()), "patch"), counted(len(plan.expected), "block")),
        )
        self._notes = list(data["notes"])
        if enlarged := source.enlarged():
            self._notes.append(enlarged)
        if not plan.expected:
            self._notes.append(
                "no tissue found (all is glass or ink), so no nuclei; --input_mask_dir can say where it is"
            )
        for note in self._notes:
            logger.warning("%s: %s", self.path.name, note)
        if self.stage == PREDICT:
            self.maps.say_need(
                self.path.name, [plan.net_box(index) for index in plan.todo], self.run.predictor.channels
            )
        if plan.done:
            self._notes.append(f"{len(plan.done)} of {counted(len(plan.expected), 'block')} there already")
            logger.info("%s: %s", self.path.name, self._notes[-1])

    # ------------------------------------------------------------------------------------------ after the network

    def job(self, index: int, maps: SharedArray | None) -> Job:
        plan, path = self._plan, self.maps.path(index)
        if self.stage == PREDICT:
            return KeepJob(maps, path)
        maps = StoredMaps(path) if maps is None else maps
        manager, how = self.run.manager, self.run.post_proc
        return BlockJob(plan.blocks, plan.planes, index, maps, manager.nr_types, how, self._spool)

    def place(self, what: Any) -> str:
        if not isinstance(what, int):
            return ""
        y0, x0, y1, x1 = self._plan.blocks.block(what).core
        return f"block {what} (x {x0} to {x1}, y {y0} to {y1} px): "

    def last_job(self) -> Job | None:
        if self.skipped is not None or self.stage == PREDICT:
            return None
        plan, data, scale = self._plan, self.source.handler.metadata, self.source.scale
        (width, height), mpp = data["base_shape"].tolist(), float(data["base_mpp"][0])
        slide = {"name": self.path.name, "width": width, "height": height, "scale": scale, "mpp": mpp}
        slide |= {"bounds": data["bounds_xywh"], "tissue_share": self.row.tissue_share}
        says = {"mpp": mpp * scale, "mpp_from": data["mpp_from"], "slide": slide, RUN_KEY: self._depends}
        header = self.run.manager.header(**says)
        paths = {kind: path for kind, path in self._files.items() if kind in ("json", "qupath")}
        types = self.run.manager.type_info_dict
        job = SlideJob(plan.blocks, plan.expected, self._spool, paths, self.source.out_mag, header, self.name, types)
        return UploadJob(job, self._files, uri) if (uri := self.run.options.upload) else job

    def found(self, value: Any) -> Counter:
        if self.stage == PREDICT:
            logger.info("%s: %.2f GB of maps in %s", self.path.name, self.maps.nr_bytes() / 1e9, self.maps.folder)
            return Counter()
        found, diameters, seconds = value
        self.run.report.diameters_um.update(diameters)
        self._spool.remove()
        self.row.nuclei = found.total()
        logger.info("%s: %s; written in %.1f s", self.path.name, counted(found.total(), "nucleus"), seconds)
        return found

    def close(self, outcome: str, reason: str) -> None:
        """Record the result of the slide."""
        row = self.row
        row.status, row.reason = outcome, reason or "; ".join(self._notes)
        if outcome == "done" and self.stage == PREDICT:
            row.status = PREDICTED
        row.seconds = round(time.perf_counter() - self._start, 1)
        if outcome == "skipped":
            logger.info("%s: skipped, %s", row.slide, reason)
        self.release()
        earlier = self.run.summary.earlier(row.slide) or {}
        keep = outcome == "skipped" and (reason == BUSY or earlier.get("status") == "done")
        uri = self.run.options.upload if outcome in ("done", "skipped") and row.status != PREDICTED else None
        self.run.summary.put(row, keep, self.slide.extra | ({UPLOADED: uri} if uri and reason != BUSY else {}))

    def release(self) -> None:
        """Close the slide and give up its lock."""
        self._held.close()
