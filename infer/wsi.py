"""Slide inference: a folder of slides in, one JSON of nuclei a slide out; any size, bounded memory, resumable."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infer import base
from infer.options import WsiOptions
from infer.spool import SpoolError
from infer.tile_stream import POST_PROC_BYTES_PX
from infer.workers import WorkerPool, limit_workers
from infer.wsi_files import find_slides
from infer.wsi_slide import Setting, SlideTask
from infer.wsi_stream import SlideFailedError
from infer.wsi_summary import BUSY, DONE, SKIPPED, THERE, Row, Summary
from infer.wsi_tile import finish_wsi_tile
from misc.files import full_stem, printable, remove_if_empty
from misc.locks import locked
from misc.machine import available_memory, reused_memory_pages
from misc.slides.handler import MPP_TIMES_MAG

logger = logging.getLogger(__name__)

# Magnification at which published networks were trained, for checkpoints that do not say their own.
DEFAULT_MAG = 40.0
# Share of the free memory that post-processing workers may take.
WORKER_MEMORY = 0.5
# px that a tile should see beyond its core: a nucleus of 8 um at 0.25 um/px, which epithelial ones seldom exceed.
MIN_AMBIGUOUS_PX = 32
_EXPECTED_ERRORS = (ValueError, OSError, SlideFailedError, SpoolError)  # their message says all


class InferManager(base.InferManager):
    """Runs inference on a folder of slides."""

    def process_wsi_list(self, run_args: Mapping[str, Any] | WsiOptions) -> base.Report:
        """Segment every slide of a folder; write `json/`, and `qupath/ thumb/ mask/` where asked, and `summary.csv`.

        Slides whose nuclei are there are skipped, unless `overwrite` is set; only files that are missing beside them
        are added. Files that are no slides are listed and passed over. A bad slide is reported, the others are done.

        Args:
            run_args: options by name, see `WsiOptions`.

        Raises:
            FileNotFoundError: no input folder, no slide in it, or no folder of masks.
            ValueError: an option makes no sense, or two slides would write the same files.
        """
        options = run_args if isinstance(run_args, WsiOptions) else WsiOptions.from_dict(run_args)
        found = find_slides(options)
        run = _Run(self, options)
        for path, reason in found.unusable.items():
            run.refuse(path, reason)
        workers = run.nr_workers()
        pool = WorkerPool(finish_wsi_tile, workers, queue=workers + 2)  # each that waits holds the maps of a tile
        on_cpu = run.setting.predictor.device.type == "cpu"
        interrupted = True
        try:
            with reused_memory_pages() if on_cpu else contextlib.nullcontext():
                run.all(found.slides, pool)
            interrupted = False
        finally:
            pool.close(cancel=interrupted)
            run.tidy_up()
            if interrupted:
                logger.warning("stopped; the same command goes on")
        run.finish_summary()
        return run.report


class _Run:
    """One run over a folder."""

    def __init__(self, manager: InferManager, options: WsiOptions):
        if options.save_type_probs and not manager.nr_types:
            raise ValueError("--save_type_probs needs a network with types; this checkpoint has none")
        if options.input_mask_dir and not options.input_mask_dir.is_dir():
            raise FileNotFoundError(f"no such folder: {options.input_mask_dir} (--input_mask_dir)")
        _warn_of_margin(options)
        predictor = manager.predictor(options)
        trained_at = manager.checkpoint.meta.get("mpp")
        self.setting = Setting(
            manager=manager,
            options=options,
            predictor=predictor,
            window=manager.patch_shapes(options),
            batch_size=predictor.batch_size,
            proc_mag=options.proc_mag or (MPP_TIMES_MAG / float(trained_at) if trained_at else DEFAULT_MAG),
            readers=limit_workers("--nr_inference_workers", options.nr_inference_workers, 1 << 30),
        )
        self.report = base.Report()
        self.summary = Summary(options.output_dir / "summary.csv")
        self._seconds, self._patches = 0.0, 0  # of slides that are done
        for file in self.setting.paths("x").values():
            file.parent.mkdir(parents=True, exist_ok=True)

    def nr_workers(self) -> int:
        """Limit the post-processing workers by processors and by the memory that a tile takes."""
        options = self.setting.options
        asked = limit_workers("--nr_post_proc_workers", options.nr_post_proc_workers, 1 << 30)
        side = options.tile_shape + 2 * options.ambiguous_size
        need = (POST_PROC_BYTES_PX + 8 * self.setting.predictor.channels) * side**2
        fit = max(int(available_memory() * WORKER_MEMORY) // need, 1)
        if asked > fit:
            logger.info("--nr_post_proc_workers=%d -> %d: a tile takes %.1f GB", asked, fit, need / 2**30)
        return min(asked, fit)

    def refuse(self, path: Path, reason: str) -> None:
        """Report a file that cannot be opened; its stem may be a slide's, so it goes by its whole name."""
        name = printable(path.name)
        self.report.failed[name] = reason
        logger.error("%s", reason)
        self.summary.put(Row(name, reason=reason))

    def all(self, paths: list[Path], pool: WorkerPool) -> None:
        """Do all slides, those that another run has at the end: it may be dead by then."""
        busy = [path for path in paths if self._one(path, pool).reason == BUSY]
        for path in busy:
            row = self._one(path, pool)
            if row.reason == BUSY:
                self._record(full_stem(path), row)

    def finish_summary(self) -> None:
        """Write what could not be written before; if it still cannot be, say it and go on: the results are there."""
        try:
            self.summary.flush()
        except OSError as error:
            reason = f"{self.summary.path} cannot be written ({error.strerror or error}); it lacks lines of this run"
            self.report.failed[self.summary.path.name] = reason
            logger.error("%s", reason)

    def tidy_up(self) -> None:
        """Remove the cache folder if it is our own and nothing is left in it."""
        if self.setting.options.cache_path is None:
            remove_if_empty(self.setting.cache_dir)

    def _one(self, path: Path, pool: WorkerPool) -> Row:
        """Do a slide, whatever happens; returns its line of the summary, which is not recorded if it is busy."""
        row, start = Row(path.name), time.perf_counter()
        try:
            task = SlideTask(self.setting, path)
            with locked(task.lock) as free:
                if free:
                    self._do(task, pool, row)
                else:
                    row.status, row.reason = SKIPPED, BUSY
        except Exception as error:
            self._failed(row, error)
            for _ in pool.wait_all():  # what is still under way belongs to this slide
                pass
        row.seconds = round(time.perf_counter() - start, 1)
        if row.status == DONE:
            self._seconds, self._patches = self._seconds + row.seconds, self._patches + task.nr_patches
        if row.reason != BUSY:
            self._record(full_stem(path), row)
        return row

    def _do(self, task: SlideTask, pool: WorkerPool, row: Row) -> None:
        if "json" in task.wanted:
            pace = self._seconds / self._patches if self._patches else None
            found = task.segment(pool, row, pace)
            self.report.found.update(found)
            row.status = DONE
            return
        task.complete()
        row.reason = "; ".join([THERE, *(f"{kind} added" for kind in sorted(task.wanted))])
        earlier = self.summary.earlier(row.slide) or {}
        row.nuclei = earlier.get("nuclei") or task.nuclei_in_json()
        row.status = SKIPPED

    def _failed(self, row: Row, error: Exception) -> None:
        known = isinstance(error, _EXPECTED_ERRORS)
        row.reason = " ".join(str(error).split()) if known else f"{type(error).__name__}: {error}"
        logger.error("%s: %s\n%s", row.slide, row.reason, getattr(error, "details", ""), exc_info=not known)

    def _record(self, name: str, row: Row) -> None:
        """Say what became of a slide, in the report and in the summary."""
        if row.status == SKIPPED:
            self.report.skipped.append(name)
            logger.info("%s: skipped, %s", row.slide, row.reason)
        elif row.status == DONE:
            self.report.done.append(name)
        else:
            self.report.failed[name] = row.reason
        self.summary.put(row)


def _warn_of_margin(options: WsiOptions) -> None:
    if options.ambiguous_size < MIN_AMBIGUOUS_PX:
        logger.warning(
            "--ambiguous_size=%d is less than a nucleus needs (%d px): nuclei on the borders of tiles may be cut, or "
            "differ with --tile_shape",
            *(options.ambiguous_size, MIN_AMBIGUOUS_PX),
        )
