"""Inference on images: a folder of them in, `json/ mat/ overlay/` (and `qupath/`) out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infer.options import TileOptions
from infer.plan import Plan, plan_image
from infer.provenance import RUN_KEY, OtherRunError
from infer.run import POST_PROC_BYTES_PX, Report, Run, RunTask
from infer.run import InferManager as BaseManager
from infer.sinks import CompleteImageJob, ImageJob, ImageResult, ImageSpec
from infer.source import ImageSource, network_shape
from misc.files import check_unique_stems, full_stem, list_files, printable, remove_parts, unusable_name
from misc.machine import available_memory
from misc.slides.images import no_image_because, probe_size
from misc.workers import Job, SharedArray, WorkerPool

logger = logging.getLogger(__name__)

# Folders in the output folder; what lies in them is no input.
RESULT_FOLDERS = ("json", "mat", "overlay", "qupath")


class InferManager(BaseManager):
    """Runs inference on a folder of images."""

    def process_file_list(
        self, run_args: Mapping[str, Any] | TileOptions, paths: Sequence[Path] | None = None
    ) -> Report:
        """Segment every image of a folder and write `json/ mat/ overlay/` (and `qupath/`).

        Images whose files are all there are skipped, unless `overwrite` is set; results that were made otherwise
        (checkpoint, mpp, window, precision, type_probs, constants of post-processing) stay, and are reported as failed.
        A bad image is reported, the others are done; inputs = done + skipped + failed.

        Args:
            run_args: options by name, see `TileOptions`.
            paths: files of the input folder; left out: all.

        Raises:
            FileNotFoundError: no input folder, or nothing in it.
            ValueError: an option makes no sense, or two inputs would write the same files.
        """
        options = run_args if isinstance(run_args, TileOptions) else TileOptions.from_dict(run_args)
        paths = input_files(options) if paths is None else paths
        refused = {path: reason for path in paths if (reason := unusable_name(path) or no_image_because(path))}
        images = [path for path in paths if path not in refused]
        check_unique_stems(images)
        run = _ImageRun(self, options)
        for path, reason in refused.items():  # its stem may be an image's
            run.report.failed[printable(path.relative_to(options.input_dir))] = f"{printable(path)}: {reason}"
        for path in run.spec.paths("x").values():
            path.parent.mkdir(parents=True, exist_ok=True)
        run.all(images)
        run.log_summary(len(paths))
        return run.report


def input_files(options: TileOptions) -> list[Path]:
    """Return the files of the input folder, but for results that lie in it."""
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


class _ImageRun(Run):
    """A run over images; `dropped` nuclei are in the instance maps only."""

    def __init__(self, manager: InferManager, options: TileOptions):
        super().__init__(manager, options)
        self.scale = options.mpp / manager.model_mpp if options.mpp else 1.0
        self.memory = available_memory()
        self.dropped = 0
        header = manager.header(mpp=options.mpp, **{RUN_KEY: manager.fingerprint(options)})
        self.spec = ImageSpec(options, manager.nr_types, manager.type_info_dict, header)

    def all(self, images: list[Path]) -> None:
        """Do what is left to do of all images."""
        tasks = list(self._tasks(images))
        if self.report.skipped:
            logger.info("%d of %d already done (--overwrite redoes them)", len(self.report.skipped), len(images))
        if not tasks:
            return
        if self.scale != 1:
            logger.info("images at %g um/px are read by the network at %g", self.options.mpp, self.manager.model_mpp)
        memory = int(self.memory * self.options.mem_usage)
        pool = WorkerPool(self.workers(max(task.cost for task in tasks), memory, len(tasks)))
        readers = self.readers(len(tasks))
        self._before = {task: self._written_at(task) for task in tasks}
        self.execute(tasks, pool, readers, readers, memory)

    def so_far(self) -> str:
        # what workers finished meanwhile is done too, though nobody took their results
        done = sum(self._written_at(task) not in (None, at) for task, at in self._before.items())
        return f": {done} of {len(self._before)} images done"

    def _tasks(self, images: list[Path]) -> Iterator[ImageTask]:
        """Find out what there is to do for each image."""
        for path in images:
            try:
                missing = frozenset({"json"}) if self.options.overwrite else self.spec.missing(full_stem(path))
                if not missing:
                    self.report.skipped.append(full_stem(path))
                    continue
                yield ImageTask(self, path, missing, *(self._cost(path) if "json" in missing else (0, 0)))
            except (OtherRunError, OSError, MemoryError) as error:
                self.report.failed[full_stem(path)] = str(error)

    def _cost(self, path: Path) -> tuple[int, int]:
        """Return the bytes that an image takes in both processes, and the px that are predicted; 0: not known yet."""
        size = probe_size(path)
        if size is None:
            return 0, 0
        net_yx = network_shape(size, self.scale)
        image_px, net_px = size[0] * size[1], net_yx[0] * net_yx[1]
        network = (3 + 4 * self.predictor.channels) * net_px
        if network > self.memory:
            raise MemoryError(
                f"{path}: {size[1]} x {size[0]} px are {net_yx[1]} x {net_yx[0]} px for the network (--mpp="
                f"{self.options.mpp}), which need {network / 2**30:.1f} GB of {self.memory / 2**30:.1f} GB that are "
                "free: check --mpp, use `wsi`, or cut it into pieces"
            )
        return 2 * (3 * image_px + network) + POST_PROC_BYTES_PX * max(image_px, net_px), net_px

    def _written_at(self, task: RunTask) -> int | None:
        path = self.spec.paths(task.name)["json"]
        return path.stat().st_mtime_ns if path.exists() else None

    def log_summary(self, nr_inputs: int) -> None:
        if self.dropped:
            logger.info("%d specks of under three outline points are in the instance maps only", self.dropped)
        if failed := self.report.failed:
            logger.error("%d of %d images failed:", len(failed), nr_inputs)
            for name, reason in sorted(failed.items()):
                logger.error("  %s: %s", name, reason)


class ImageTask(RunTask):
    """An image that is to be done.

    Args:
        missing: files that are to be written; without `json` among them, from the JSON file that is there.
        cost, px: what it takes, see `_ImageRun._cost`.
    """

    def __init__(self, run: _ImageRun, path: Path, missing: frozenset[str], cost: int, px: int):
        super().__init__(path, cost)
        self.run, self.missing, self.px = run, missing, px

    def prepare(self) -> Plan | None:
        """Read the image."""
        for path in self.run.spec.paths(self.name).values():
            remove_parts(path)
        if "json" not in self.missing:
            return None
        try:
            self.source = ImageSource.open(self.path, self.run.scale)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        planes = self.source.planes
        return plan_image(planes, self.run.manager.window(self.run.options, planes.net_yx))

    def job(self, index: int, maps: SharedArray) -> Job:
        image = self.run.pool.array(self.source.image.shape, np.uint8)
        image.array[:], self.source = self.source.image, None
        return ImageJob(self.run.spec, self.name, self.path.name, image, maps)

    def last_job(self) -> Job | None:
        done = "json" in self.missing  # by the job of its one block
        return None if done else CompleteImageJob(self.run.spec, self.name, self.path, self.missing)

    def found(self, value: ImageResult) -> Counter:
        self.run.dropped += value.dropped
        return value.by_type
