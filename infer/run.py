"""A run over a folder: the unfinished work goes through one stream, and its results go to files and the report."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from infer.grid import cut_window
from infer.options import RunOptions
from infer.plan import Plan
from infer.predictor import Predictor
from infer.provenance import post_proc_values
from infer.stream import PLANNED, Stream, Task
from misc.cli import VERSION
from misc.files import file_digest
from misc.formats.nuclei_json import types_from_header, types_to_header
from misc.machine import reused_memory_pages
from misc.text import counted
from misc.threads import Budget
from misc.type_info import TypeInfo, default_type_info, differing_names, load_type_info, say_types
from misc.workers import Job, Outcome, WorkerPool, limit_workers
from models.hovernet.checkpoint import build_model, check_options, load_checkpoint
from models.hovernet.devices import choose_precision, device_names, parse_devices
from models.hovernet.net_desc import PATCH_SHAPES, WINDOW_STEPS, output_size
from models.hovernet.post_proc import DROP, PostProc

logger = logging.getLogger(__name__)

# um/px that a network reads when its checkpoint does not say it: the published networks read 40x.
DEFAULT_MPP = 0.25
# Working memory of post-processing and drawing, bytes a pixel, measured as peak RSS over map and image.
POST_PROC_BYTES_PX = 90
FINISHED = "finished"  # the event of a task's last job, see `infer.stream.Event`


@dataclass
class Report:
    """The result for every input, by name: done, failed with a reason, or skipped because its files exist.

    `found` is the number of nuclei by type (`None` without types), `diameters_um` the number by diameter; the script
    repeats `warning` at the end.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    found: Counter = field(default_factory=Counter)
    diameters_um: Counter = field(default_factory=Counter, repr=False)  # some hundred entries
    warning: str = ""

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


class InferManager:
    """Loads a checkpoint and logs what it is.

    Args:
        method: `{"model_path": ..., "model_args": {"nr_types": ..., "mode": ...}}`; `model_args` and each of its
            entries may be left out; they are then read from the checkpoint.
        type_info_path: `type_info.json`; without it the names and colours come from the checkpoint's `meta`, or
            from a default palette.
        gpu: comma-separated ids, `mps`, or empty for the CPU.
        precision: see `models.hovernet.devices.choose_precision`.

    Attributes:
        net: the network; may be replaced by any module with its `nr_types` and `output_ch`.
        workers: processes that one run of slides leaves for the next; `None`: a run ends its processes.
    """

    def __init__(self, method: Mapping[str, Any], type_info_path: str | Path | None = None, gpu="0", precision="auto"):
        model_args = method.get("model_args", {})
        self.checkpoint = load_checkpoint(method["model_path"])
        check_options(self.checkpoint, model_args.get("mode"), model_args.get("nr_types"))
        self.mode, self.nr_types = self.checkpoint.mode, self.checkpoint.nr_types
        self.net = build_model(self.checkpoint)
        self.workers: list | None = None
        self.devices = parse_devices(gpu)
        self.precision = choose_precision(precision, self.checkpoint.meta.get("precision"), self.devices[0])
        self.type_info_dict = self._type_info(type_info_path)
        logger.info(
            "HoVer-Net toolkit %s: %s (`%s`, %s, width %g) on %s in %s",
            *(VERSION, self.checkpoint.path.name, self.mode, counted(self.nr_types or 0, "type")),
            *(self.checkpoint.width, device_names(self.devices, gpu), self.precision),
        )

    @property
    def trained_at(self) -> float | None:
        """um/px that the network was trained at, or `None` where the checkpoint does not say it."""
        return self.checkpoint.meta.get("mpp")

    @property
    def model_mpp(self) -> float:
        """um/px that the network reads."""
        return float(self.trained_at or DEFAULT_MPP)

    def predictor(self, options: RunOptions) -> Predictor:
        """Move the network to its devices for a run."""
        ink = self.post_proc(options).ink == DROP
        how = {"type_probs": options.save_type_probs, "tta": options.tta, "ink": ink}
        return Predictor(self.net, self.devices, options.batch_size, self.precision, **how)

    def post_proc(self, options: RunOptions) -> PostProc:
        """Return how nuclei are found: by the options, else the checkpoint's advice, else the original's way."""
        recommended = PostProc.from_meta(self.checkpoint.meta, f"the meta of {self.checkpoint.path}")
        given = {name: getattr(options, name) for name in asdict(recommended)}
        return replace(recommended, **{name: value for name, value in given.items() if value is not None})

    def largest_window(self, options: RunOptions) -> int:
        """Return the side of the patches that the network reads: option, checkpoint's advice, or the mode's."""
        size = options.patch_input_shape or self.checkpoint.meta.get("window") or PATCH_SHAPES[self.mode][0]
        out = output_size(self.mode, size)
        if options.patch_output_shape not in (None, out):
            raise ValueError(
                f"a window of {size} px gives {out} px in mode `{self.mode}`, not {options.patch_output_shape}"
            )
        return size

    def window(self, options: RunOptions, shape_yx: tuple[int, int]) -> tuple[int, int]:
        """Return (input, output) side of the patches of an image of that size, px of the network's plane."""
        size, (patch_in, patch_out) = self.largest_window(options), PATCH_SHAPES[self.mode]
        lost = patch_in - patch_out
        if size > patch_in:  # the mode's own patch is never cut: the original uses a whole one for the smallest image
            size = cut_window(shape_yx, size, lost, WINDOW_STEPS[self.mode])
        return size, size - lost

    def fingerprint(self, options: RunOptions) -> dict[str, Any]:
        """Return what the results of a run depend on, besides the image or slide."""
        path = self.checkpoint.path
        return {
            "checkpoint": f"{path.name} {file_digest(path)}",
            "mpp": options.mpp,
            "window": self.largest_window(options),
            "precision": self.precision,
            "save_type_probs": options.save_type_probs,
            "post_proc": post_proc_values(self.post_proc(options)),
            # only where it is asked for, so that results of earlier versions still count as done
            **({"tta": True} if options.tta else {}),
        }

    def header(self, **extra) -> dict[str, Any]:
        """Return what the result files say about how they were made."""
        types = types_to_header(self.type_info_dict)
        return {**extra, "types": types, "model": self.checkpoint.path.name, "version": VERSION}

    def _type_info(self, path: str | Path | None) -> TypeInfo:
        own = types_from_header(self.checkpoint.meta) or {}
        if not path:
            return default_type_info(self.nr_types) | own
        given = load_type_info(path, self.nr_types)
        if differing := differing_names(given, own):
            logger.warning(
                "--type_info_path says %s, but this checkpoint was trained on %s: leave the option out, or give the "
                "file that belongs to the checkpoint",
                *(say_types(differing, names) for names in (given, own)),
            )
        return given


class RunTask(Task):
    """A task of a run.

    Attributes:
        px: number of pixels that the network will predict, as known before planning.
        busy: another run works on it.
        skipped: why the network has nothing to do, or the files that are added; `None` where it has work.
        waiting: number of blocks without a result yet.
        settled: whether it is in the report.
    """

    px = waiting = 0
    skipped: str | None = None
    busy = settled = False

    def last_job(self) -> Job | None:
        """Return the job that follows when all blocks are finished, if any."""
        return None

    def place(self, what: Any) -> str:
        """Return where a block lies, for messages."""
        return ""

    def found(self, value: Any) -> Counter:
        """Return the number of nuclei by type, from what the last job returned."""
        raise NotImplementedError

    def close(self, status: str, reason: str) -> None:
        """Release all resources; called once, with `done`, `skipped` or `failed` and the reason."""


class Run:
    """One run over a folder; `report` has the results of its tasks so far."""

    def __init__(self, manager: InferManager, options: RunOptions):
        if options.save_type_probs and not manager.nr_types:
            raise ValueError("--save_type_probs needs a network with types; this checkpoint has none")
        self.manager = manager
        self.options = options
        self.predictor = manager.predictor(options)
        self.post_proc = manager.post_proc(options)
        logger.info("%s", _say_post_proc(self.post_proc, options, manager.checkpoint.meta))
        self.report = Report()
        self.pool: WorkerPool | None = None
        self._stream: Stream | None = None

    def readers(self, useful: int = 1 << 30) -> int:
        """Return how many threads read ahead."""
        return limit_workers("--nr_inference_workers", self.options.nr_inference_workers, useful)

    def workers(self, need: int, memory: int, useful: int = 1 << 30) -> int:
        """Limit the worker processes by processors, pieces of work (`useful`), and memory: each needs `need` bytes."""
        asked = limit_workers("--nr_post_proc_workers", self.options.nr_post_proc_workers, useful)
        fit = max(memory // max(need, 1), 1)
        if asked > fit:
            logger.info(
                "--nr_post_proc_workers=%d -> %d: each may take %.1f GB, and %.1f GB are allowed",
                *(asked, fit, need / 2**30, memory / 2**30),
            )
        return min(asked, fit)

    def so_far(self) -> str:
        """Return how far a stopped run came."""
        return ""

    def execute(self, tasks: list[RunTask], pool: WorkerPool, readers: int, ahead: int, memory: int) -> None:
        """Do all tasks in at most `memory` bytes; other arguments as in `Stream`. Closes the pool at the end."""
        self.pool = pool
        self._stream = Stream(tasks, self.predictor, pool, readers, ahead, Budget(memory))
        on_cpu = self.predictor.device.type == "cpu"
        total = sum(task.px for task in tasks)
        interrupted = True
        try:
            with (
                reused_memory_pages() if on_cpu else contextlib.nullcontext(),
                tqdm(total=total, unit="px", unit_scale=True, desc="Segmenting", smoothing=0.1) as bar,
                logging_redirect_tqdm(),  # otherwise lines of the log begin in the middle of the bar
                contextlib.closing(self._stream.run(bar)) as events,
            ):
                for task, what, outcome in events:
                    if not task.settled:
                        self._take(task, what, outcome, bar)
                bar.total = bar.n  # failed parts were not predicted
            interrupted = False
        finally:
            pool.close(cancel=interrupted)
            if interrupted:
                logger.warning("stopped%s; the same command goes on", self.so_far())

    def _take(self, task: RunTask, what: Any, outcome: Outcome, bar: tqdm) -> None:
        """Handle the result of a block or of a task."""
        if outcome.error is not None:
            self._settle(task, "failed", replace(outcome, error=task.place(what) + outcome.error))
            return
        if task.busy:
            self._stream.budget.give(task)
            return
        if what == PLANNED and outcome.value is not None:
            plan: Plan = outcome.value
            task.waiting = len(plan.todo)
            bar.total += int(plan.wanted.sum()) * plan.patches.patch_output**2 - task.px
            bar.set_description(task.path.name)
        elif what not in (PLANNED, FINISHED):
            task.waiting -= 1
        if task.waiting:
            return
        job = None if what == FINISHED else task.last_job()
        if job is None:
            self._settle(task, "done" if task.skipped is None else "skipped", outcome)
        else:
            self._stream.submit(task, FINISHED, job)

    def _settle(self, task: RunTask, status: str, outcome: Outcome) -> None:
        task.settled = True
        if status == "done":
            self.report.done.append(task.name)
            self.report.found.update(task.found(outcome.value))
        elif status == "skipped":
            self.report.skipped.append(task.name)
        else:
            task.failed = True
            self.report.failed[task.name] = outcome.error
            logger.error("%s", "\n".join(filter(None, [f"{task.path.name}: {outcome.error}", outcome.details])))
        task.close(status, outcome.error or task.skipped or "")
        self._stream.budget.give(task)


def _say_post_proc(how: PostProc, options: RunOptions, meta: Mapping[str, Any]) -> str:
    """Return the line of the log on how nuclei are found; each value with what said it."""
    said = []
    for name, value in asdict(how).items():
        asked, recommended = getattr(options, name) is not None, meta.get(name) is not None
        source = f"--{name}" if asked else "the checkpoint's" if recommended else "the default"
        said.append(f"{name} {value if isinstance(value, str) else f'{value:g}'} ({source})")
    return f"post-processing: {', '.join(said)}"
