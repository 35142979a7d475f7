"""Segment and classify nuclei in images and whole slides.

Usage:
  run_infer.py [options] [--help] <command> [<args>...]
  run_infer.py --version
  run_infer.py (-h | --help)

Options:
  -h --help                   Show this text.
  --version                   Show version.
%s
Commands:
  tile    images (PNG, JPEG, TIFF, BMP, ...) that fit into memory
  wsi     whole slides of any size

`run_infer.py <command> --help` shows the options of a command.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from docopt import docopt

from infer.options import COMMON_TEXT, TILE_TEXT, WSI_TEXT, TileOptions, WsiOptions

TEXT = (__doc__ or "") % COMMON_TEXT


def main(argv: list[str] | None = None) -> int:
    args = docopt(TEXT, argv=argv, default_help=False, options_first=True, version="HoVer-Net toolkit 1.0.0")
    command, sub_argv = args["<command>"], args["<args>"]
    if command is None:
        print(TEXT.strip())
        return 0
    commands = {"tile": (TILE_TEXT, run_tile), "wsi": (WSI_TEXT, run_wsi)}
    if command not in commands:
        print(f"run_infer.py: unknown command `{command}`; there are: {', '.join(commands)}", file=sys.stderr)
        return 2
    text, run = commands[command]
    own = docopt(text, argv=["--input_dir=", "--output_dir="])
    for name in (word.split("=")[0] for word in sub_argv):
        if name in args.keys() - own.keys():
            print(f"run_infer.py: {name} is an option of both commands and goes before `{command}`", file=sys.stderr)
            return 2
    sub_args = docopt(text, argv=["--help"] if args["--help"] else sub_argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        return run(args, sub_args)
    except (ValueError, OSError) as error:
        print(f"run_infer.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run_tile(args: dict, sub_args: dict) -> int:
    """Segment images, and end with one line that says what was found and where it is."""
    options = TileOptions.from_args({**args, **sub_args})
    method = method_options(args)
    from infer.tile import InferManager

    start = time.perf_counter()
    logging.info("options: %s", {**method, **vars(options)})
    manager = load(InferManager, method, args)
    report = manager.process_file_list(options)
    print(f"{summary(manager, report, 'images', start)}; overlays in {options.output_dir / 'overlay'}")
    if report.warning:
        logging.warning("%s", report.warning)
    return report.exit_code


def run_wsi(args: dict, sub_args: dict) -> int:
    """Segment slides, and end with one line that says what was found and where it is."""
    options = WsiOptions.from_args({**args, **sub_args})
    method = method_options(args)
    from infer.wsi import InferManager

    start = time.perf_counter()
    logging.info("options: %s", {**method, **vars(options)})
    manager = load(InferManager, method, args)
    report = manager.process_wsi_list(options)
    for name, reason in sorted(report.failed.items()):
        print(f"failed: {name}: {reason}", file=sys.stderr)
    where = f"in {options.output_dir / 'json'}, summary in {options.output_dir / 'summary.csv'}"
    print(f"{summary(manager, report, 'slides', start)}; {where}")
    return report.exit_code


def load(manager: type, method: dict, args: dict):
    """Load the network."""
    return manager(method, args["--type_info_path"] or None, gpu=args["--gpu"], precision=args["--precision"] or "auto")


def summary(manager, report, kind: str, start: float) -> str:
    """Return what a run found, by type, and how large."""
    from misc.nuclei_features import say_diameter

    size = say_diameter(report.diameters_um)
    found = ", ".join(f"{manager.type_info_dict[t][0]} {n}" for t, n in sorted(report.found.items(), key=str))
    return (
        f"{sum(report.found.values())} nuclei ({found or 'none'}) in {len(report.done)} {kind}, "
        f"{len(report.skipped)} skipped, {len(report.failed)} failed, {time.perf_counter() - start:.1f} s"
        f"{size and '; ' + size}"
    )


def method_options(args: dict) -> dict:
    """Return what says which network to load."""
    if not args["--model_path"]:
        raise ValueError("--model_path=<checkpoint> is missing")
    if args["--gpu"].lower() == "mps":  # read when PyTorch is loaded: what Apple's GPU lacks is computed on the CPU
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    model_args = {"mode": args["--model_mode"], "nr_types": args["--nr_types"]}
    given = {name: value for name, value in model_args.items() if value not in (None, "")}
    if "nr_types" in given and not given["nr_types"].isdecimal():
        raise ValueError(f"--nr_types takes a whole number, got `{given['nr_types']}`")
    return {
        "model_path": args["--model_path"],
        "model_args": given | ({"nr_types": int(given["nr_types"])} if "nr_types" in given else {}),
    }


if __name__ == "__main__":
    sys.exit(main())
