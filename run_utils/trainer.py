"""A training run: its phases one after the other, from the beginning or resumed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from misc.files import write_atomic
from misc.formats.nuclei_json import types_from_header
from misc.machine import reused_memory_pages
from misc.type_info import TypeInfo, default_type_info
from misc.viz_utils import with_legend
from models.hovernet.devices import parse_devices
from models.hovernet.encoder_init import load_for_finetuning, load_pretrained
from models.hovernet.post_proc import PostProc

from . import checkpoint_io, distributed
from .averaging import make_average, scored_network
from .callbacks.base import AverageBuffers, AverageWeights
from .checks import source_images
from .data import TrainingData
from .describe import check_same_course, describe_config, differences, meta_of_config
from .disk_full import SaveError, closing, is_disk_full, writing
from .engine import Events, RunEngine
from .log_files import read_stats, truncate_logs
from .log_folder import find_moment, held, tidy
from .recipe_checks import check_recipe, check_shapes, make_optimizer
from .scores import describe_best
from .seeding import check_manual_seed

CONFIG_FILE = "config.json"


class Trainer:
    """Runs what a `Config` describes.

    Args:
        config: a `config.Config`, or anything with its attributes.
        devices: one CPU, or one or several CUDA devices; under torchrun each process takes its own.
        resume: go on from the last checkpoint in `log_dir`.
        process: this process's place among those of torchrun.

    Raises:
        ValueError: shapes, seed or `meta` of the configuration are wrong.
    """

    def __init__(self, config, devices: list[torch.device], resume: bool = False, process=None):
        self.config = config
        self.process = process or distributed.Process()
        self.devices = devices
        self.device = devices[0]
        self.resume = resume
        self.logging = config.logging and distributed.is_main()
        net = _described_net(config)
        self.nr_types = net.nr_types
        check_shapes(config.shape_info, net.mode)
        self.meta = meta_of_config(config, self.nr_types)
        self.seed = check_manual_seed(config.seed) if config.seed is not None else None
        self.type_info = _type_info(self.meta, self.nr_types)
        self.post_proc = PostProc.from_meta(self.meta, "meta")
        self.data = TrainingData(config, self.nr_types, self.post_proc)

    def run(self) -> None:
        """Run every phase, in `log_dir/00`, `log_dir/01`, ..., or in `log_dir` itself where there is only one.

        Raises:
            ValueError, FileNotFoundError: configuration or data are wrong (before any step), or GPU memory is full.
            SaveError: the disk is full.
        """
        phases, engines = self.config.model_config["phase_list"], self.config.model_config["run_engine"]
        root = Path(self.config.log_dir)
        folders = [root] if len(phases) == 1 else [root / f"{index:02d}" for index in range(len(phases))]
        with held(root, self.config.logging):
            first, moment = self._moment(root, folders)
            check_recipe(self.config.model_config, self.nr_types, first_fresh=first + (moment.path is not None))
            self.prepare()
            self.seed = self._choose_seed(moment)
            if self.logging:
                tidy(folders, moment)
            for index in range(first, len(phases)):
                if moment.epoch < phases[index]["nr_epochs"]:
                    self._say(f"phase {index + 1} of {len(phases)}: {folders[index]}, seed {self.seed}")
                    self._run_phase(phases[index], engines, folders[index], folders[index - 1], index, moment)
                moment = checkpoint_io.Resume()
        self._say(f"done: checkpoints, stats.json, steps.csv and TensorBoard files are in {root}")
        for line in self._describe_best(folders[-1]) if self.logging else []:
            self._say(line)

    def run_once(self, opt, run_engine_opt, log_dir, prev_log_dir=None, phase=0) -> None:
        """Run one phase by itself; arguments as of `_run_phase`, errors as of `run`."""
        log_dir = Path(log_dir)
        with held(log_dir, self.config.logging):
            _, moment = self._moment(log_dir, [log_dir])
            self._run_phase(opt, run_engine_opt, log_dir, prev_log_dir, phase, moment)

    def _moment(self, root: Path, folders: list[Path]) -> tuple[int, checkpoint_io.Resume]:
        # rank 0 decides for all: on several machines the others may not see its files
        return distributed.on_main(find_moment, root, folders, self.resume, self.config.logging)

    def _run_phase(self, opt, run_engine_opt, log_dir: Path, prev_log_dir, phase: int, moment) -> None:
        """Run one phase.

        Args:
            opt: an entry of the recipe's `phase_list`.
            run_engine_opt: the recipe's `run_engine`.
            log_dir: folder for its files.
            prev_log_dir: folder of the phase before, for `pretrained: -1`.
            phase: its index.
            moment: where to start from.
        """
        # phases draw different numbers, but each the same ones every time
        seed = check_manual_seed(self.seed) + phase
        loaders = {name: self._loader(name, opt, engine, seed) for name, engine in run_engine_opt.items()}
        nr_steps = opt["nr_epochs"] * len(loaders["train"])
        nets = {
            name: self._net(name, net_info, nr_steps, prev_log_dir, moment)
            for name, net_info in opt["run_info"].items()
        }
        # described before restoring: a checkpoint replaces the recipe's values of optimizer and schedule
        described = describe_config(self.config, opt, nets)
        if moment.path is not None:
            self._restore(nets, moment, described)
        with _explained(log_dir):
            log_info = self._log_info(log_dir, nets, moment, described)
            engines = self._engines(run_engine_opt, loaders, nets, log_info, log_dir, seed)
            _go_to(engines["train"], moment, len(loaders["train"]))
            pages = reused_memory_pages() if self.device.type == "cpu" else contextlib.nullcontext()
            with closing(log_info.get("tfwriter")), pages:
                engines["train"].run(opt["nr_epochs"])

    def view_batches(self, mode: str, batch_size: int = 2):
        """Yield pictures, (H, W, 3) uint8 RGB, of batches as the network gets them, with the names of types below.

        Args:
            mode: `train` or `valid`.
            batch_size: samples in a picture.
        """
        phase = self.config.model_config["phase_list"][0]
        draw, options = phase["target_info"]["viz"]
        opt = {**phase, "batch_size": {mode: batch_size}}
        engine = {**self.config.model_config["run_engine"][mode], "nr_procs": 0}
        self.data.find(mode)
        options = {"type_info": self.type_info, **options}
        for batch in self._loader(mode, opt, engine, check_manual_seed(self.seed)):
            picture = draw({name: value.numpy() for name, value in batch.items()}, is_batch=True, **options)
            yield with_legend(picture, self.type_info)

    def _choose_seed(self, moment: checkpoint_io.Resume) -> int:
        """Return the seed of the configuration or of the resumed run, or a new one; the same on every rank."""
        saved = moment.content.get("meta", {}).get("seed")
        seed = self.config.seed if self.config.seed is not None else saved
        return distributed.gather(check_manual_seed(seed))[0]

    def prepare(self) -> None:
        """List and check all data, and print how much there is."""
        self.data.prepare(self.devices, self._say)

    def _loader(self, name: str, opt: dict, engine: dict, seed: int):
        return self.data.loader(name, opt, engine, seed, self.devices, self.process)

    def _net(self, name: str, net_info: dict, nr_steps: int, prev_log_dir, moment: checkpoint_io.Resume) -> dict:
        """Create a network with its optimizer and schedule; `_restore` loads the states of a checkpoint."""
        net = net_info["desc"]()
        pretrained = net_info["pretrained"]
        if moment.path is None and pretrained == -1:
            self._load_previous(net, name, prev_log_dir)
        elif moment.path is None and pretrained is not None:
            load_pretrained(net, pretrained, net_info.get("pretrained_norm"), self._say)
        net = net.to(self.device, memory_format=torch.channels_last)
        optimizer, schedule = make_optimizer(net_info, net.parameters(), nr_steps)
        return {
            "desc": self._wrap(net),
            "average": make_average(net, net_info["extra_info"].get("ema")),
            "optimizer": optimizer,
            "lr_scheduler": schedule,
            "extra_info": net_info["extra_info"],
            "scaler": self._scaler(net_info["extra_info"]),
            "type_info": self.type_info,
            "np_threshold": self.post_proc.np_threshold,
        }

    def _restore(self, nets: dict, moment: checkpoint_io.Resume, described: dict) -> None:
        """Load a checkpoint into the networks, unless the recipe's optimizer or schedule has changed."""
        self._say(f"resuming from {moment.path}: epoch {moment.epoch}, step {moment.epoch_step}")
        saved = moment.content.get("meta", {}).get("config", {})
        check_same_course(saved, described, moment.path)
        for info in nets.values():
            checkpoint_io.restore(info, moment)
        for line in differences(saved, described):
            self._say(f"changed since that checkpoint: {line}")

    def _load_previous(self, net: nn.Module, name: str, prev_log_dir) -> None:
        path, state = distributed.on_main(_last_weights, prev_log_dir, name)
        self._say(f"weights from {path}")
        load_for_finetuning(net, state)

    def _scaler(self, extra: dict):
        return torch.amp.GradScaler("cuda") if extra.get("amp") == "fp16" and self.device.type == "cuda" else None

    def _wrap(self, net: nn.Module) -> nn.Module:
        if distributed.is_running():
            return DistributedDataParallel(
                net,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,  # averaged at the end of an epoch, so that the batches of every rank count
                find_unused_parameters=bool(getattr(net, "freeze", False)),
            )
        return nn.DataParallel(net, device_ids=self.devices) if len(self.devices) > 1 else net

    def _log_info(self, log_dir: Path, nets: dict, moment: checkpoint_io.Resume, described: dict) -> dict:
        """Make the folder of a phase, write the effective configuration into it, and return what callbacks log with."""
        info = {"image_validator": self.data.image_validator, "type_info": self.type_info}
        if not self.logging:
            return info
        from torch.utils.tensorboard import SummaryWriter

        log_dir.mkdir(parents=True, exist_ok=True)
        truncate_logs(log_dir, moment.epoch, moment.epoch_step)
        with writing(log_dir / CONFIG_FILE):
            write_atomic(log_dir / CONFIG_FILE, json.dumps(described, indent=1))
        purge = moment.epoch + 1 if moment.path is not None else None
        return {
            **info,
            "json_file": log_dir / "stats.json",
            "steps_file": log_dir / "steps.csv",
            "tfwriter": SummaryWriter(str(log_dir), purge_step=purge),
            "meta": self._meta(nets, described),
        }

    def _meta(self, nets: dict, described: dict) -> dict:
        net = getattr(nets["net"]["desc"], "module", nets["net"]["desc"])
        meta = {"mode": net.mode, "nr_types": net.nr_types, "width": net.width, "seed": self.seed}
        images = {name: source_images(files) for name, files in self.data.files.items()}
        return {**meta, **self.meta, "images": images, "config": described}

    def _engines(self, options: dict, loaders: dict, nets: dict, log_info: dict, log_dir: Path, seed: int) -> dict:
        scored = {name: {**info, "desc": scored_network(info)} for name, info in nets.items()}
        engines = {
            name: RunEngine(
                engine_name=name,
                dataloader=loaders[name],
                run_step=option["run_step"],
                run_info=nets if name == "train" else scored,
                log_info=log_info,
                seed=seed if name == "train" else None,
            )
            for name, option in options.items()
        }
        for name, engine in engines.items():
            engine.state.logging = self.logging
            engine.state.log_dir = log_dir
            if name == "train":
                # before anything evaluates or saves, every rank takes the mean of the batch-norm statistics
                engine.add_event_handler(Events.EPOCH_COMPLETED, AverageBuffers())
                if any(info["average"] is not None for info in nets.values()):
                    engine.add_event_handler(Events.STEP_COMPLETED, AverageWeights())
            for event, callbacks in options[name]["callbacks"].items():
                for callback in callbacks:
                    callback.reset()
                    if callback.engine_trigger:
                        callback.triggered_engine = engines[callback.triggered_engine_name]
                    engine.add_event_handler(event, callback)
        return engines

    def _describe_best(self, folder: Path) -> list[str]:
        """Return lines about the best epoch of the last phase; none if no epoch was chosen."""
        path = folder / "net_best.tar"
        best = checkpoint_io.read_checkpoint(path).get("meta", {}).get("best") if path.is_file() else None
        if not best:
            return []
        stats = read_stats(folder / "stats.json")
        return describe_best(path, best, stats, self.type_info, self.device.type == "cpu")

    def _say(self, text: str) -> None:
        if distributed.is_main():
            tqdm.write(text)


def choose_devices(gpu: str | None, process: distributed.Process) -> list[torch.device]:
    """Return the devices of this process.

    Args:
        gpu: comma-separated GPU ids; empty for the CPU; `None` for all GPUs, or the CPU where there are none.
        process: under torchrun each process takes one of them.

    Raises:
        ValueError: there is no such GPU, or this machine has more processes than GPUs.
    """
    if gpu is None:
        gpu = ",".join(str(index) for index in range(torch.cuda.device_count()))
    devices = parse_devices(gpu)
    # one process of torchrun takes one GPU too: the user may have started one on each of several machines
    is_alone = process.world_size == 1 and not distributed.is_torchrun()
    if is_alone or devices[0].type == "cpu":
        return devices
    if process.local_rank >= len(devices):
        raise ValueError(f"process {process.local_rank + 1} on this machine, but only {len(devices)} GPUs: {gpu}")
    return [devices[process.local_rank]]


def _type_info(meta: dict, nr_types: int | None) -> TypeInfo | None:
    """Return names and colours of the types of a run; `None` without types."""
    return None if nr_types is None else {**default_type_info(nr_types), **(types_from_header(meta) or {})}


def _described_net(config) -> nn.Module:
    """Make the recipe's network without weights: only the network itself knows its mode and number of types."""
    net_info = next(iter(config.model_config["phase_list"][0]["run_info"].values()))
    with torch.device("meta"):
        return net_info["desc"]()


def _last_weights(log_dir: str | Path, name: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return the last checkpoint of a phase and its weights."""
    path = checkpoint_io.last_checkpoint(log_dir, name)
    if path is None:
        raise FileNotFoundError(f"no {name}_epoch=N.tar in {log_dir}: the phase before has not run")
    state = checkpoint_io.read_checkpoint(path)["desc"]
    return path, {key.removeprefix("module."): value for key, value in state.items()}


def _go_to(engine: RunEngine, moment: checkpoint_io.Resume, nr_epoch_steps: int) -> None:
    """Move a training engine to the moment of a checkpoint; upstream's checkpoints hold only the epoch."""
    if moment.path is not None and "resume" in moment.content:
        engine.load_state_dict(moment.content["resume"])
    elif moment.path is not None:
        engine.state.curr_epoch = moment.epoch
        engine.state.curr_global_step = moment.epoch * nr_epoch_steps


@contextlib.contextmanager
def _explained(log_dir: Path) -> Iterator[None]:
    """Turn errors of a full disk or full GPU memory into one line that says what to do."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(f"out of GPU memory: lower batch_size in the recipe ({str(error).splitlines()[0]})") from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(log_dir).free / 1e6
        raise SaveError(
            f"disk full while writing {error.filename or log_dir} ({free:.1f} MB free); "
            f"{checkpoint_io.what_is_left(log_dir)}"
        ) from error
