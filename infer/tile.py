"""Tile inference: images stream through the network while finished ones are post-processed and written.

Three things go on at once: reading threads decode the next images, this process runs the network, and worker
processes turn prediction maps into files. Only as many images are under way as the memory budget allows.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from misc.files import check_unique_stems, full_stem, list_files, printable, unusable_name
from misc.machine import available_memory, reused_memory_pages
from misc.slides.images import no_image_because, probe_size

from . import base
from .options import TileOptions
from .rerun import RUN_KEY, OtherRunError, missing_files, post_proc_constants
from .tile_output import MissingFiles, TileResult, TileSpec, complete_tile, finish_tile
from .tile_stream import TileStream, network_bytes, network_shape, tile_bytes
from .workers import Outcome, WorkerPool, limit_workers

logger = logging.getLogger(__name__)

# Folders in the output folder; what lies in them is no input.
RESULT_FOLDERS = ("json", "mat", "overlay", "qupath")


class InferManager(base.InferManager):
    """Runs inference on a folder of images."""

    def process_file_list(self, run_args: Mapping[str, Any] | TileOptions) -> base.Report:
        """Segment every image of a folder and write `json/ mat/ overlay/` (and `qupath/`).

        Images whose files are all there are skipped, unless `overwrite` is set; results that were made otherwise
        (checkpoint, mpp, window, precision, type_probs, constants of post-processing) stay, and are reported as failed.
        A bad image is reported, the others are done; inputs = done + skipped + failed.

        Args:
            run_args: options by name, see `TileOptions`.

        Raises:
            FileNotFoundError: no input folder, or nothing in it.
            ValueError: an option makes no sense, or two inputs would write the same files.
        """
        options = run_args if isinstance(run_args, TileOptions) else TileOptions.from_dict(run_args)
        paths = input_files(options)
        refused = {path: reason for path in paths if (reason := unusable_name(path) or no_image_because(path))}
        images = [path for path in paths if path not in refused]
        check_unique_stems(images)
        run = _Run(self, options)
        for path, reason in refused.items():  # its stem may be an image's
            run.report.failed[printable(path.relative_to(options.input_dir))] = f"{printable(path)}: {reason}"
        for path in run.spec.paths("x").values():
            path.parent.mkdir(parents=True, exist_ok=True)
        run.sort(images)
        run.complete()
        run.execute()
        run.log_summary(len(paths))
        return run.report


def input_files(options: TileOptions) -> list[Path]:
    """Return the files of the input folder, but for results that lie in it.

    Raises:
        FileNotFoundError: no input folder, or nothing in it.
    """
    source, out = options.input_dir.resolve(), options.output_dir.resolve()
    results = [folder for folder in (out, *(out / name for name in RESULT_FOLDERS)) if source in folder.parents]
    files = [
        path
        for path in list_files(options.input_dir, options.pattern, options.recursive)
        if not any(path.parent.resolve().is_relative_to(folder) for folder in results)
    ]
    if not files:
        raise FileNotFoundError(f"no file matches {options.pattern} in {options.input_dir}")
    return files


class _Run:
    """One run over a folder: what there is to do, and what became of it.

    Attributes:
        todo: images for the network.
        incomplete: finished images, and the files that can be made from their JSON files.
        dropped: nuclei that are in the instance maps only.
    """

    def __init__(self, manager: InferManager, options: TileOptions):
        if options.save_type_probs and not manager.nr_types:
            raise ValueError("--save_type_probs needs a network with types; this checkpoint has none")
        self.manager = manager
        self.options = options
        self.window = manager.patch_shapes(options)
        self.predictor = manager.predictor(options)
        self.scale = options.mpp / manager.model_mpp if options.mpp else 1.0
        self.memory = available_memory()
        self.budget = int(self.memory * options.mem_usage)
        self.spec = self._spec()
        self.todo: list[Path] = []
        self.incomplete: dict[Path, frozenset[str]] = {}
        self.report = base.Report()
        self.dropped = 0

    def _spec(self) -> TileSpec:
        manager, options = self.manager, self.options
        return TileSpec(
            output_dir=options.output_dir,
            nr_types=manager.nr_types,
            type_info=manager.type_info_dict,
            header=manager.header(mpp=options.mpp, **{RUN_KEY: self._fingerprint()}),
            type_probs=options.save_type_probs,
            draw_dot=options.draw_dot,
            line_thickness=options.line_thickness,
            save_qupath=options.save_qupath,
            save_raw_map=options.save_raw_map,
        )

    def _fingerprint(self) -> dict[str, Any]:
        """What the results of an image depend on, besides the image."""
        return {
            "checkpoint": self.manager.checkpoint_id,
            "mpp": self.options.mpp,
            "window": self.window[0],
            "precision": self.predictor.precision,
            "save_type_probs": self.options.save_type_probs,
            "post_proc": post_proc_constants(),
        }

    def sort(self, images: Collection[Path]) -> None:
        """Find out what there is to do for each image."""
        for path in images:
            try:
                missing = {"json"} if self.options.overwrite else missing_files(self.spec, full_stem(path))
            except (OtherRunError, OSError) as error:
                self.report.failed[full_stem(path)] = str(error)
                continue
            if not missing:
                self.report.skipped.append(full_stem(path))
            elif "json" in missing:
                self.todo.append(path)
            else:
                self.incomplete[path] = missing
        if self.report.skipped:
            logger.info("%d of %d already done (--overwrite redoes them)", len(self.report.skipped), len(images))

    def complete(self) -> None:
        """Write what is missing of finished images."""
        if not self.incomplete:
            return
        logger.info("%d images are done; files that are missing are made from their JSON", len(self.incomplete))
        workers = limit_workers("--nr_post_proc_workers", self.options.nr_post_proc_workers, len(self.incomplete))
        with self._pool(complete_tile, workers) as pool:
            for path, kinds in self.incomplete.items():
                pool.submit(full_stem(path), MissingFiles(self.spec, full_stem(path), path, kinds))
            for outcome in pool.wait_all():
                self._take(outcome)

    def execute(self) -> None:
        """Run the network over the images to be done."""
        sizes = self._sizes()
        if not sizes:
            return
        if self.scale != 1:
            logger.info("images at %g um/px are read by the network at %g", self.options.mpp, self.manager.model_mpp)
        readers = limit_workers("--nr_inference_workers", self.options.nr_inference_workers, len(sizes))
        on_cpu = self.predictor.device.type == "cpu"
        with self._pool(finish_tile, self._nr_workers(sizes)) as pool:
            stream = TileStream(sizes, self.predictor, pool, self.spec, self.window, self.scale, self.budget, readers)
            total = sum(stream.nr_patches(size) for size in sizes.values() if size)
            with (
                reused_memory_pages() if on_cpu else contextlib.nullcontext(),
                tqdm(total=total, unit="patch", desc="Segmenting", smoothing=0.1) as bar,
            ):
                for outcome in stream.run(bar):
                    self._take(outcome)
                bar.total = bar.n  # a damaged image took fewer patches than its header promised

    def _sizes(self) -> dict[Path, tuple[int, int] | None]:
        """Return the sizes of the images to be done; those that the network could never hold have failed."""
        sizes = {}
        for path in self.todo:
            size = probe_size(path)
            net_yx = network_shape(size, self.scale) if size else (0, 0)
            if (need := network_bytes(net_yx, self.predictor.channels)) > self.memory:
                self.report.failed[full_stem(path)] = (
                    f"{path}: would be {net_yx[1]} x {net_yx[0]} px for the network, {need / 2**30:.1f} GB with its "
                    f"maps; {self.memory / 2**30:.1f} GB are free. Is --mpp right?"
                )
            else:
                sizes[path] = size
        return sizes

    @contextlib.contextmanager
    def _pool(self, function: Callable, workers: int) -> Iterator[WorkerPool]:
        """Start worker processes for a block; where it is interrupted, say how far it came."""
        pool = WorkerPool(function, workers)
        before = {path: self._written_at(path) for path in self.todo}
        interrupted = True
        try:
            yield pool
            interrupted = False
        finally:
            pool.close(cancel=interrupted)
            if interrupted:
                # what workers finished meanwhile is done too, though nobody took their results
                now = {path: self._written_at(path) for path in before}
                written = {full_stem(path) for path, time in before.items() if now[path] not in (None, time)}
                done, asked = len(written.union(self.report.done)), len(self.todo) + len(self.incomplete)
                logger.warning("stopped: %d of %d images done; the same command goes on", done, asked)

    def _written_at(self, path: Path) -> int | None:
        with contextlib.suppress(OSError):
            return self.spec.paths(full_stem(path))["json"].stat().st_mtime_ns
        return None

    def _nr_workers(self, sizes: Mapping[Path, tuple[int, int] | None]) -> int:
        """Limit the post-processing workers by processors, images, and the memory that each needs."""
        asked = limit_workers("--nr_post_proc_workers", self.options.nr_post_proc_workers, len(sizes))
        channels = self.predictor.channels
        known = [tile_bytes(size, network_shape(size, self.scale), channels) for size in sizes.values() if size]
        need = max(known, default=1)
        fit = max(self.budget // need, 1)
        if asked > fit:
            logger.info(
                "--nr_post_proc_workers=%d -> %d: the largest image needs %.1f GB, %.1f GB are allowed (--mem_usage)",
                *(asked, fit, need / 2**30, self.budget / 2**30),
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
