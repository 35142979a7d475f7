"""Train HoVer-Net as config.py and its recipe (models/hovernet/opt.py) say.

Usage:
  run_train.py [--gpu=<ids>] [--resume] [--seed=<n>] [--config=<file>] [--no_report]
  run_train.py --view=<set> [--view_path=<file>] [--seed=<n>] [--config=<file>]
  run_train.py (-h | --help)
  run_train.py --version

Options:
  -h --help           Show this text.
  --version           Show the version.
  --gpu=<ids>         GPUs to use, comma separated, e.g. 0,1; empty for the CPU. Left out: all there are.
  --resume            Go on where the run in log_dir was interrupted; without it, a log_dir in use is refused.
  --seed=<n>          Seed of all random numbers, instead of the one in the configuration.
  --config=<file>     Another file with a class Config. [default: config.py]
  --no_report         Write no report.html, the page to look at in log_dir.
  --view=<set>        Look at batches instead of training: train or valid.
  --view_path=<file>  Write the first batch to this picture file instead of showing a window.

Several processes, on one machine or many: torchrun --nproc_per_node=4 run_train.py
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path

from config import Config
from misc.cli import number, run_command


class Commands:
    """What `run_train.py` can do with a configuration; mixed into its class."""

    def run(self, gpu: str | None = None, resume: bool = False) -> None:
        """Train; `gpu` and `resume` as the options of the command line."""
        from run_utils import distributed

        self._trainer(gpu, resume).run()
        distributed.stop()

    def run_once(self, opt: dict, run_engine_opt: dict, log_dir, prev_log_dir=None, fold_idx: int = 0) -> None:
        """Train one phase of the recipe (`fold_idx` numbers it), into `log_dir`."""
        trainer = self._trainer(None, False)
        trainer.prepare()
        trainer.run_once(opt, run_engine_opt, log_dir, prev_log_dir, fold_idx)

    def view_dataset(self, mode: str = "train", path: str | Path | None = None) -> None:
        """Show batches as the network gets them, or write the first one to `path`."""
        from misc.type_info import say_types
        from run_utils.viewer import save_picture, show_pictures

        trainer = self._trainer("", False)
        pictures, names = trainer.view_batches(mode), say_types(range(1, trainer.nr_types or 1), trainer.type_info)
        shown = f"image, NP, HV x, HV y{f', types ({names}; grey: unknown)' if names else ''}"
        if path is None:
            show_pictures(pictures, title=f"{mode}: {shown}")
        else:
            save_picture(path, next(iter(pictures)))
            print(f"first {mode} batch written to {path}: {shown}")

    def _trainer(self, gpu: str | None, resume: bool):
        from run_utils import distributed
        from run_utils.trainer import Trainer, choose_devices

        process = distributed.read_environment()
        devices = choose_devices(gpu, process)
        distributed.start(process, devices[0])
        return Trainer(self, devices, resume, process)


class TrainManager(Commands, Config):
    """The configuration of config.py, and what can be done with it."""


def load_manager(path: str | Path) -> type:
    """Return `TrainManager` for another configuration file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Python file, or has no class `Config`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration file: {path}")
    if path.suffix != ".py":
        raise ValueError(f"a configuration is a Python file, whose name ends in .py; got {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "Config", None), type):
        raise ValueError(f"{path} has no class Config")
    return type("TrainManager", (Commands, module.Config), {})


def main(argv: list[str] | None = None) -> int:
    return run_command(__doc__, run, argv)


def run(args: dict) -> int:
    """Train, or show batches."""
    default = Path(args["--config"]) == Path("config.py")
    manager = (TrainManager if default else load_manager(args["--config"]))()
    if args["--seed"] is not None:
        manager.seed = number(args, "--seed", int, zero=True)
    if args["--view"] is None:
        try:
            manager.run(args["--gpu"], args["--resume"])
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt(f"to go on: {resume_command(args)}") from stopped
        if manager.logging and not args.get("--no_report") and os.environ.get("RANK", "0") == "0":
            from viewer.report.make import say_report

            print(say_report(Path(manager.log_dir)))
    elif args["--view"] in ("train", "valid"):
        manager.view_dataset(args["--view"], args["--view_path"])
    else:
        raise ValueError(f"--view takes train or valid, got `{args['--view']}`")
    return 0


def resume_command(args: dict) -> str:
    """Return the command that goes on with a run."""
    given = [f"{option}={args[option]}" for option in ("--gpu", "--seed", "--config") if args[option] is not None]
    return shlex.join(["python", "run_train.py", *(text for text in given if text != "--config=config.py"), "--resume"])


if __name__ == "__main__":
    sys.exit(main())
