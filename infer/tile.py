"""Tile inference: images stream through the network while finished ones are post-processed and written.

Three things go on at once: reading threads decode the next images, this process runs the network, and worker
processes turn prediction maps into files. Only as many images are under way as the memory budget allows.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from misc.files import check_unique_stems, full_stem, list_files
from misc.machine import available_memory, reused_memory_pages

from . import base
from .images import probe_size
from .options import TileOptions
from .predictor import Predictor
from .tile_output import TileResult, TileSpec, finish_tile
from .tile_stream import TileStream, network_shape, tile_bytes
from .workers import Outcome, WorkerPool, limit_workers

logger = logging.getLogger(__name__)


class InferManager(base.InferManager):
    """Runs inference on a folder of images."""

    def process_file_list(self, run_args: Mapping[str, Any] | TileOptions) -> base.Report:
        """Segment every image of a folder and write `json/ mat/ overlay/` (and `qupath/`).

        Images whose files are all there are skipped, unless `overwrite` is set. A bad image is reported, the
        others are done; inputs = done + skipped + failed.

        Args:
            run_args: options by name, see `TileOptions`.

        Raises:
            FileNotFoundError: no input folder, or nothing in it.
            ValueError: an option makes no sense, or two inputs would write the same files.
        """
        options = run_args if isinstance(run_args, TileOptions) else TileOptions.from_dict(run_args)
        paths = list_files(options.input_dir, options.pattern, options.recursive)
        if not paths:
            raise FileNotFoundError(f"no file matches {options.pattern} in {options.input_dir}")
        check_unique_stems(paths)
        spec = self._spec(options)
        run = _Run(self, options, spec)
        for path in spec.paths("x").values():
            path.parent.mkdir(parents=True, exist_ok=True)
        run.todo = [path for path in paths if options.overwrite or not run.is_done(path)]
        run.report.skipped = [full_stem(path) for path in paths if path not in set(run.todo)]
        if run.report.skipped:
            logger.info("%d of %d already done (--overwrite redoes them)", len(run.report.skipped), len(paths))
        if run.todo:
            run.execute()
        run.log_summary(len(paths))
        return run.report

    def _spec(self, options: TileOptions) -> TileSpec:
        if options.save_type_probs and not self.nr_types:
            raise ValueError("--save_type_probs needs a network with types; this checkpoint has none")
        return TileSpec(
            output_dir=options.output_dir,
            nr_types=self.nr_types,
            type_info=self.type_info_dict,
            header=self.header(mpp=options.mpp),
            type_probs=options.save_type_probs,
            draw_dot=options.draw_dot,
            line_thickness=options.line_thickness,
            save_qupath=options.save_qupath,
            save_raw_map=options.save_raw_map,
        )


class _Run:
    """One run over a folder: what there is to do, and what became of it."""

    def __init__(self, manager: InferManager, options: TileOptions, spec: TileSpec):
        self.manager = manager
        self.options = options
        self.spec = spec
        self.window = manager.patch_shapes(options)
        self.predictor = manager.predictor(options)
        self.todo: list[Path] = []
        self.report = base.Report()
        self.dropped = 0

    def is_done(self, path: Path) -> bool:
        return all(output.exists() for output in self.spec.paths(full_stem(path)).values())

    def execute(self) -> None:
        options, manager = self.options, self.manager
        scale = options.mpp / manager.model_mpp if options.mpp else 1.0
        if scale != 1:
            logger.info("images at %g um/px are read by the network at %g", options.mpp, manager.model_mpp)
        predictor = self.predictor
        budget = int(available_memory() * options.mem_usage)
        sizes = [probe_size(path) for path in self.todo]
        workers = self._nr_workers(sizes, scale, predictor, budget)
        readers = limit_workers("--nr_inference_workers", options.nr_inference_workers, len(self.todo))
        pool = WorkerPool(finish_tile, workers)
        stream = TileStream(self.todo, predictor, pool, self.spec, self.window, scale, budget, readers)
        total = sum(stream.nr_patches(size) for size in sizes if size)
        on_cpu = predictor.device.type == "cpu"
        interrupted = True
        try:
            with reused_memory_pages() if on_cpu else contextlib.nullcontext():
                with tqdm(total=total, unit="patch", desc="Segmenting", smoothing=0.1) as bar:
                    for outcome in stream.run(bar):
                        self._take(outcome)
            interrupted = False
        finally:
            pool.close(cancel=interrupted)
            if interrupted:
                logger.warning("stopped: %d of %d images done; the same command goes on", *self._progress())

    def _progress(self) -> tuple[int, int]:
        return len(self.report.done), len(self.todo)

    def _nr_workers(self, sizes, scale: float, predictor: Predictor, budget: int) -> int:
        """Limit the post-processing workers by processors, images, and the memory that each needs."""
        asked = limit_workers("--nr_post_proc_workers", self.options.nr_post_proc_workers, len(self.todo))
        known = [tile_bytes(size, network_shape(size, scale), predictor.channels) for size in sizes if size]
        need = max(known, default=1)
        fit = max(budget // need, 1)
        if asked > fit:
            logger.info(
                "--nr_post_proc_workers=%d -> %d: the largest image needs %.1f GB, %.1f GB are allowed (--mem_usage)",
                *(asked, fit, need / 2**30, budget / 2**30),
            )
        return min(asked, fit)

    def _take(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.report.failed[outcome.name] = outcome.error
            logger.error("%s: %s\n%s", outcome.name, outcome.error, outcome.details)
            return
        result: TileResult = outcome.value
        self.report.done.append(outcome.name)
        self.report.found.update(result.by_type)
        self.dropped += result.dropped

    def log_summary(self, nr_inputs: int) -> None:
        if self.dropped:
            logger.info("%d specks of under three outline points are in the instance maps only", self.dropped)
        done, failed = len(self.report.done), self.report.failed
        if failed:
            logger.error("%d of %d images failed:", len(failed), nr_inputs)
            for name, reason in sorted(failed.items()):
                logger.error("  %s: %s", name, reason)
        logger.debug(
            "inputs %d = done %d + skipped %d + failed %d", nr_inputs, done, len(self.report.skipped), len(failed)
        )
