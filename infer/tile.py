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
from infer.run import DEFAULT_MPP, POST_PROC_BYTES_PX, Report, Run, RunTask
from infer.run import InferManager as BaseManager
from infer.sinks import CompleteImageJob, ImageJob, ImageResult, ImageSpec
from infer.source import ImageSource, image_scale, network_shape
from misc.files import (
    check_name_lengths,
    check_unique_stems,
    full_stem,
    list_files,
    printable,
    remove_parts,
    unusable_name,
)
from misc.machine import available_memory
from misc.slides.images import SIDE_SUFFIXES, no_image_because, probe_mpp, probe_size
from misc.slides.resolution import say_guessed, say_overruled
from misc.text import counted, first_names
from misc.workers import Job, SharedArray, WorkerPool

logger = logging.getLogger(__name__)

# Folders in the output folder; files in them are not inputs.
RESULT_FOLDERS = ("json", "mat", "overlay", "qupath")


class InferManager(BaseManager):
    """Runs inference on a folder of images; arguments and attributes: see `infer.run.InferManager`."""

    def process_file_list(
        self, run_args: Mapping[str, Any] | TileOptions, paths: Sequence[Path] | None = None
    ) -> Report:
        """Segment every image of a folder and write `json/ mat/ overlay/` (and `qupath/`).

        Images with all their files are skipped, unless `overwrite` is set. Results with other settings (checkpoint,
        mpp, window, precision, type_probs, constants of post-processing) stay, and are reported as failed.
        A bad image is reported, and the run continues; inputs = done + skipped + failed. Tables, texts and the like
        (`misc.slides.images.SIDE_SUFFIXES`) are no inputs.

        Args:
            run_args: options of `run_infer.py tile` by name, without dashes: `input_dir` and `output_dir` are needed,
                `mpp` is the um per px of the images. All others have the command's defaults.
            paths: files of the input folder; left out: all.

        Returns:
            The result for each image, by its name without the extension. Its nuclei are in `json/<name>.json`, which
            `misc.formats.nuclei_json.read_json` reads as arrays: centroids (N, 2) float64 and contours (M, 2) int32, x
            then y, in px of the image as it is, whatever the network reads it at. `mat/<name>.mat` holds `inst_map`,
            (H, W) int32, 0 for background.

        Raises:
            FileNotFoundError: no input folder, or nothing in it.
            ValueError: an option is unknown or makes no sense, or two inputs would write the same files.
        """
        options = run_args if isinstance(run_args, TileOptions) else TileOptions.from_dict(run_args)
        paths = input_files(options) if paths is None else paths
        refused = {path: reason for path in paths if (reason := unusable_name(path) or no_image_because(path))}
        images = [path for path in paths if path not in refused]
        check_unique_stems(images)
        run = _ImageRun(self, options, images)
        for path, reason in refused.items():  # its stem may be an image's
            run.report.failed[printable(path.relative_to(options.input_dir))] = f"{printable(path)}: {reason}"
        for path in run.spec.paths("x").values():
            path.parent.mkdir(parents=True, exist_ok=True)
        run.all(images)
        if run.dropped:
            logger.info("in the instance maps only: %s of under three points", counted(run.dropped, "speck"))
        return run.report


def input_files(options: TileOptions) -> list[Path]:
    """Return the images of the input folder, without results that lie in it; what its name says is none is logged."""
    source, out = options.input_dir.resolve(), options.output_dir.resolve()
    results = [folder for folder in (out, *(out / name for name in RESULT_FOLDERS)) if source in folder.parents]
    files = [
        path
        for path in list_files(options.input_dir, options.pattern, options.recursive)
        if not any(path.parent.resolve().is_relative_to(folder) for folder in results)
    ]
    images = [path for path in files if path.suffix.lower() not in SIDE_SUFFIXES]
    if side := [printable(path.name) for path in files if path not in images]:
        logger.info("%s left out, no images: %s", counted(len(side), "file"), first_names(side))
    if not images:
        raise FileNotFoundError(f"no image matches {options.pattern} in {options.input_dir}")
    return images


class _ImageRun(Run):
    """A run over images; `dropped` nuclei are in the instance maps only."""

    def __init__(self, manager: InferManager, options: TileOptions, images: list[Path]):
        # logged before all else
        said = {path: probe_mpp(path) for path in images}
        warning = _doubtful(said, options.mpp, manager)
        if warning:
            logger.warning("%s", warning)
        self.said = dict.fromkeys(images, (options.mpp, "--mpp")) if options.mpp else said
        super().__init__(manager, options)
        self.report.warning = warning
        self.memory = available_memory()
        self.dropped = 0
        self._made_with = manager.fingerprint(options)
        self.spec = self._spec(None, "")

    def _spec(self, mpp: float | None, said_by: str) -> ImageSpec:
        """Return what to write for an image of `mpp` um per px (`None`: unknown)."""
        manager, model_mpp = self.manager, self.manager.model_mpp
        # only the option counts for checkpoints that do not say what they were trained at, such as the original's
        read_at = mpp if manager.trained_at is not None else self.options.mpp
        said_by = said_by if mpp else f"nothing; assumed {model_mpp:g}"
        says = {"mpp": mpp, "mpp_from": said_by, RUN_KEY: self._made_with | {"mpp": read_at}}
        scale = image_scale(read_at, model_mpp) if read_at else 1.0
        types = manager.nr_types, self.post_proc, manager.type_info_dict
        return ImageSpec(self.options, *types, manager.header(**says), mpp or model_mpp, scale)

    def all(self, images: list[Path]) -> None:
        """Do the unfinished work on all images."""
        tasks = list(self._tasks(images))
        if self.report.skipped:
            logger.info("%d of %d already done (--overwrite redoes them)", len(self.report.skipped), len(images))
        if not tasks:
            return
        for mpp in sorted({task.spec.mpp for task in tasks if task.spec.scale != 1}):
            logger.info("images at %g um/px are read by the network at %g", mpp, self.manager.model_mpp)
        memory = int(self.memory * self.options.mem_usage)
        pool = WorkerPool(self.workers(max(task.cost for task in tasks), memory, len(tasks)))
        readers = self.readers(len(tasks))
        self._before = {task: self._written_at(task) for task in tasks}
        self.execute(tasks, pool, readers, readers, memory)

    def so_far(self) -> str:
        # images that workers finished meanwhile are done too, though this process did not receive the results
        done = sum(self._written_at(task) not in (None, at) for task, at in self._before.items())
        return f": {done} of {counted(len(self._before), 'image')} done"

    def _tasks(self, images: list[Path]) -> Iterator[ImageTask]:
        """Find the work for each image."""
        for path in images:
            try:
                spec = self._spec(*self.said[path])
                check_name_lengths(spec.paths(full_stem(path)).values())
                missing = frozenset({"json"}) if self.options.overwrite else spec.missing(full_stem(path))
                if not missing:
                    self.report.skipped.append(full_stem(path))
                    continue
                cost = self._cost(path, spec) if "json" in missing else (0, 0)
                yield ImageTask(self, path, spec, missing, *cost)
            except (OtherRunError, OSError, MemoryError) as error:
                self.report.failed[full_stem(path)] = str(error)

    def _cost(self, path: Path, spec: ImageSpec) -> tuple[int, int]:
        """Return the bytes that an image takes in both processes, and the number of predicted px; 0: not known yet."""
        size = probe_size(path)
        if size is None:
            return 0, 0
        net_yx = network_shape(size, spec.scale)
        image_px, net_px = size[0] * size[1], net_yx[0] * net_yx[1]
        network = (3 + 4 * self.predictor.channels) * net_px
        if network > self.memory:
            raise MemoryError(
                f"{path}: {size[1]} x {size[0]} px are {net_yx[1]} x {net_yx[0]} px for the network (at "
                f"{spec.mpp:g} um/px), which need {network / 2**30:.1f} GB of "
                f"{self.memory / 2**30:.1f} GB that are free: check --mpp, use `wsi`, or cut it into pieces"
            )
        return 2 * (3 * image_px + network) + POST_PROC_BYTES_PX * max(image_px, net_px), net_px

    def _written_at(self, task: RunTask) -> int | None:
        path = self.spec.paths(task.name)["json"]
        return path.stat().st_mtime_ns if path.exists() else None


def _doubtful(said: Mapping[Path, tuple[float | None, str]], given: float | None, manager: InferManager) -> str:
    """Return a warning where `--mpp` contradicts a file, or the pixel size is a guess.

    No guess is reported for 40x, nor for checkpoints without a pixel size.
    """
    if given:
        return say_overruled({path.name: mpp for path, (mpp, _) in said.items()}, given)
    silent = {path.name: reason for path, (mpp, reason) in said.items() if mpp is None}
    if not silent or manager.trained_at in (None, DEFAULT_MPP):
        return ""
    return say_guessed(silent, len(said), manager.model_mpp)


class ImageTask(RunTask):
    """An image of the run.

    Args:
        spec: the files to write.
        missing: kinds of files to write; without `json` among them, they are made from the existing JSON file.
        cost, px: memory and work, see `_ImageRun._cost`.
    """

    def __init__(self, run: _ImageRun, path: Path, spec: ImageSpec, missing: frozenset[str], cost: int, px: int):
        super().__init__(path, cost)
        self.run, self.spec, self.missing, self.px = run, spec, missing, px

    def prepare(self) -> Plan | None:
        """Read the image."""
        for path in self.spec.paths(self.name).values():
            remove_parts(path)
        if "json" not in self.missing:
            return None
        try:
            self.source = ImageSource.open(self.path, self.spec.scale)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        planes = self.source.planes
        return plan_image(planes, self.run.manager.window(self.run.options, planes.net_yx))

    def job(self, index: int, maps: SharedArray) -> Job:
        image = self.run.pool.array(self.source.image.shape, np.uint8)
        image.array[:], self.source = self.source.image, None
        return ImageJob(self.spec, self.name, self.path.name, image, maps)

    def last_job(self) -> Job | None:
        done = "json" in self.missing  # by the job of its one block
        return None if done else CompleteImageJob(self.spec, self.name, self.path, self.missing)

    def found(self, value: ImageResult) -> Counter:
        self.run.dropped += value.dropped
        self.run.report.diameters_um.update(value.diameters_um)
        return value.by_type
