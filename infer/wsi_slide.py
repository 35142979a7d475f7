"""One slide of a run: what it is and what is to be done, through the network, and into its files."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from infer import base
from infer.options import WsiOptions
from infer.predictor import Predictor
from infer.rerun import RUN_KEY, post_proc_constants, was_made_so
from infer.spool import Spool, remove_finished
from infer.workers import WorkerPool
from infer.wsi_files import lock_path, remove_parts, result_path
from infer.wsi_join import SlideJoiner, remove_joined
from infer.wsi_plan import Plan, Strip, plan_slide
from infer.wsi_reader import SlideReader
from infer.wsi_stream import SlideStream, duration
from infer.wsi_summary import Row
from misc.files import file_digest, full_stem
from misc.formats.nuclei_json import head_text, iter_json, read_header
from misc.formats.qupath import write_geojson
from misc.slides.handler import FileHandler, get_file_handler
from misc.slides.tissue import TissueMask, load_mask, otsu_mask, save_png, thumbnail

logger = logging.getLogger(__name__)

# Folder in the output folder for the spool, when no --cache_path is given.
CACHE_DIR = ".cache"


@dataclass(frozen=True)
class Setting:
    """What all slides of a run have in common.

    Attributes:
        window: (input, output) side of a patch, px.
        batch_size: patches that go to the network together.
        proc_mag: magnification that the network reads.
        readers: threads that read ahead.
    """

    manager: base.InferManager
    options: WsiOptions
    predictor: Predictor
    window: tuple[int, int]
    batch_size: int
    proc_mag: float
    readers: int

    @property
    def cache_dir(self) -> Path:
        return self.options.cache_path or self.options.output_dir / CACHE_DIR

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What the results of all slides depend on."""
        options = self.options
        return {
            "checkpoint": self.manager.checkpoint_id,
            "proc_mag": self.proc_mag,
            "mpp": options.mpp,
            "mag": options.mag,
            "window": self.window[0],
            "tile_shape": options.tile_shape,
            "ambiguous_size": options.ambiguous_size,
            "precision": self.predictor.precision,
            "save_type_probs": options.save_type_probs,
            "post_proc": post_proc_constants(),
        }

    def paths(self, name: str) -> dict[str, Path]:
        """Return the files of a slide; those that an earlier run wrote too, lest they be left beside newer nuclei."""
        out, options = self.options.output_dir, self.options
        paths = {"json": out / "json" / f"{name}.json"}
        for kind, suffix, asked in (
            ("qupath", "geojson", options.save_qupath),
            ("thumb", "png", options.save_thumb),
            ("mask", "png", options.save_mask),
        ):
            path = out / kind / f"{name}.{suffix}"
            if asked or path.exists():
                paths[kind] = path
        return paths


class SlideTask:
    """A slide that is to be done; whoever calls its methods holds its lock.

    Attributes:
        lock: path of the lock.
        nr_patches: how many the network got.
    """

    def __init__(self, setting: Setting, path: Path):
        self.setting = setting
        self.path = path
        self.name = full_stem(path)
        self.lock = lock_path(setting.paths(self.name)["json"])
        self.nr_patches = 0

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What the results depend on; of the slide its size, which copying does not change as it does the date."""
        return {
            **self.setting.fingerprint,
            "slide_bytes": self.path.stat().st_size,
            "mask": self._mask_digest(),
        }

    @cached_property
    def files(self) -> dict[str, Path]:
        """See `Setting.paths`; looked up under the lock, since another run may be writing them before."""
        return self.setting.paths(self.name)

    @cached_property
    def wanted(self) -> set[str]:
        """The files that are to be written; all of them when the nuclei are new.

        Raises:
            OtherRunError: the nuclei there are not those that this run would find.
        """
        if self.setting.options.overwrite or was_made_so(self.files["json"], self.fingerprint) is None:
            return set(self.files)
        return {kind for kind, path in self.files.items() if not path.exists()}

    def complete(self) -> None:
        """Write the files that are missing beside nuclei that are there, without the network."""
        remove_finished(self.setting.cache_dir, self.name, self._owner, self.files["json"])
        remove_joined(self.files["json"])
        remove_parts(self.files.values())
        if self.wanted & {"thumb", "mask"}:
            with SlideReader(self._open) as reader:
                self._tissue(reader)
        if "qupath" in self.wanted:
            self._write_qupath()

    def nuclei_in_json(self) -> int:
        """Count the nuclei of the file that is there."""
        return sum(len(part) for part in iter_json(self.files["json"]))

    def segment(self, pool: WorkerPool, row: Row, seconds_a_patch: float | None) -> Counter:
        """Do the slide.

        Args:
            pool: runs `finish_wsi_tile`.
            row: the slide's line of the summary, filled in as things become known.
            seconds_a_patch: what earlier slides took, `None` for the first one.

        Returns:
            Number of nuclei of each type (`None` without types).
        """
        remove_parts(self.files.values())
        with SlideReader(self._open) as reader:
            tissue = self._tissue(reader)
            plan = self._plan(reader.handler, tissue)
            with self._spool(plan) as spool:
                joiner = SlideJoiner(spool, plan, self.files["json"], self._head(reader.handler))
                strips = plan.strips(joiner.rows)
                self.nr_patches = plan.nr_patches(strips)
                notes = self._describe(reader.handler, tissue, plan, row)
                notes += self._say_what_is_left(plan, joiner.rows, seconds_a_patch)
                stream = self._stream(plan, reader, pool, joiner)
                stream.nuclei, stream.tell_estimate = sum(joiner.rows.values()), seconds_a_patch is None
                self._run(stream, plan, strips)
                start = time.perf_counter()
                found = self._write(joiner, row)
                stream.seconds["joining and writing"] = joiner.seconds + time.perf_counter() - start
                spool.remove()
        row.reason = "; ".join(notes)
        times = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in stream.seconds.items())
        logger.info("%s: %d nuclei; %s", self.path.name, row.nuclei, times)
        return found

    # ------------------------------------------------------------------------------------------ before the network

    def _open(self) -> FileHandler:
        options = self.setting.options
        handler = get_file_handler(self.path, mpp=options.mpp, mag=options.mag)
        handler.prepare_reading(read_mag=self.setting.proc_mag)
        return handler

    @property
    def _mask_path(self) -> Path | None:
        folder = self.setting.options.input_mask_dir
        return folder / f"{self.name}.png" if folder else None

    def _mask_digest(self) -> str | None:
        if not self._mask_path:
            return None
        return file_digest(self._mask_path) if self._mask_path.is_file() else "missing"

    def _tissue(self, reader: SlideReader) -> TissueMask:
        """Find the tissue, and write the pictures that are wanted of it."""
        thumb = None
        if self._mask_path:
            tissue = load_mask(self._mask_path, reader.handler.shape_yx)
        else:
            thumb = reader.use(thumbnail)
            tissue = otsu_mask(thumb)
        if "thumb" in self.wanted:
            with result_path(self.files["thumb"]) as path:
                save_png(path, reader.use(thumbnail) if thumb is None else thumb)
        if "mask" in self.wanted:
            with result_path(self.files["mask"]) as path:
                tissue.save(path)
        return tissue

    def _plan(self, handler: FileHandler, tissue: TissueMask) -> Plan:
        options = self.setting.options
        shape = handler.shape_yx
        return plan_slide(shape, self.setting.window, options.tile_shape, options.ambiguous_size, tissue)

    @property
    def _owner(self) -> Path:
        return self.setting.options.output_dir.resolve()

    def _spool(self, plan: Plan) -> Spool:
        options = self.setting.options
        fingerprint = {
            **self.fingerprint,
            "slide": [str(self.path.resolve()), self.path.stat().st_mtime_ns],
            "grids": [plan.patches, plan.tiles],
            "tissue": hashlib.sha256(np.packbits(plan.tissue).tobytes()).hexdigest(),
            "version": base.VERSION,
        }
        return Spool(self.setting.cache_dir, self.name, fingerprint, self._owner, is_ours=options.cache_path is None)

    def _describe(self, handler: FileHandler, tissue: TissueMask, plan: Plan, row: Row) -> list[str]:
        """Say what the slide is; returns what is odd about it."""
        data, (height, width), proc_mag = handler.metadata, handler.shape_yx, self.setting.proc_mag
        mpp = float(data["base_mpp"][0])
        row.mpp, row.magnification, row.tissue_share = round(mpp, 4), data["base_mag"], round(tissue.share, 4)
        logger.info(
            "%s: %d x %d px at %.4g um/px (%s; %gx), read at %gx: %d x %d px, "
            "%.0f %% tissue (%s), %d patches, %d tiles",
            *(self.path.name, *data["base_shape"].tolist(), mpp, data["mpp_from"], data["base_mag"], proc_mag),
            *(width, height, 100 * tissue.share, tissue.source, plan.nr_patches(), len(plan.tiles)),
        )
        notes = list(data["notes"])
        if enlarged := handler.upsampling(read_mag=proc_mag):
            notes.append(enlarged)
        if not plan.tissue.any():
            notes.append("no tissue found, so no nuclei")
        for note in notes:
            logger.warning("%s: %s", self.path.name, note)
        return notes

    def _say_what_is_left(self, plan: Plan, done: Mapping[int, int], seconds_a_patch: float | None) -> list[str]:
        """Say what there is to do; returns what the seconds of this run do not count."""
        there = [f"{len(done)} of {plan.tiles.rows} rows of tiles were there already"] if done else []
        said = list(there)
        if seconds_a_patch is not None:
            said.append(f"about {duration(self.nr_patches * seconds_a_patch)} at the pace of earlier slides")
        if said:
            logger.info("%s: %s", self.path.name, "; ".join(said))
        return there

    # ------------------------------------------------------------------------------------------ network and output

    def _stream(self, plan: Plan, reader: SlideReader, pool: WorkerPool, joiner: SlideJoiner) -> SlideStream:
        setting = self.setting
        return SlideStream(
            name=self.path.name,
            plan=plan,
            read=reader.read,
            predictor=setting.predictor,
            pool=pool,
            nr_types=setting.manager.nr_types,
            batch_size=setting.batch_size,
            readers=setting.readers,
            chunk_px=setting.options.chunk_shape,
            keep_row=joiner.keep,
        )

    def _run(self, stream: SlideStream, plan: Plan, strips: Sequence[Strip]) -> None:
        """Run the network with a progress bar, which goes on where the last run was."""
        patch_px = plan.patches.patch_output**2  # whole px: shares of a Mpx add up to too much
        # strips that are predicted again may be more than what is left
        total = max(plan.nr_patches(), self.nr_patches)
        numbers = {"total": total * patch_px, "initial": (total - self.nr_patches) * patch_px}
        bar = tqdm(**numbers, unit="px", unit_scale=True, desc=self.path.name, smoothing=0.1)
        with bar, logging_redirect_tqdm():  # else lines of the log begin where the bar ends
            stream.run(strips, bar)

    def _head(self, handler: FileHandler) -> bytes:
        """Return how the JSON file begins."""
        (width, height), mpp = handler.metadata["base_shape"].tolist(), float(handler.metadata["base_mpp"][0])
        scale = handler.scale_yx[1]
        slide = {"name": self.path.name, "width": width, "height": height, "scale": scale, "mpp": mpp}
        if bounds := handler.metadata["bounds_xywh"]:
            slide["bounds"] = bounds
        header = self.setting.manager.header(mpp=mpp * scale, slide=slide, **{RUN_KEY: self.fingerprint})
        return head_text(self.setting.proc_mag, header)

    def _write(self, joiner: SlideJoiner, row: Row) -> Counter:
        """Finish the JSON file, and write the outlines; returns how many nuclei there are of each type."""
        if "qupath" in self.files:  # whenever this is stopped, outlines of other nuclei are not beside the new ones
            self.files["qupath"].unlink(missing_ok=True)
        found = joiner.finish()
        row.nuclei = found.total()
        if "qupath" in self.files:
            self._write_qupath()
        return found

    def _write_qupath(self) -> None:
        source = self.files["json"]
        try:
            slide = read_header(source)["slide"]
            scale, origin_xy = float(slide["scale"]), tuple((slide.get("bounds") or (0, 0))[:2])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{source} does not say the scale of its slide; --overwrite makes it anew") from error
        with result_path(self.files["qupath"]) as path:
            nuclei, types = iter_json(source), self.setting.manager.type_info_dict
            write_geojson(path, nuclei, types, scale, name=self.name, origin_xy=origin_xy)
