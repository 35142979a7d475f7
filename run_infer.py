"""Segment and classify nuclei in image tiles.

Usage:
  run_infer.py [options] [--help] <command> [<args>...]
  run_infer.py --version
  run_infer.py (-h | --help)

Options:
  -h --help                   Show this text.
  --version                   Show version.

  --gpu=<id>                  Comma-separated GPU ids; empty for the CPU. [default: 0]
  --nr_types=<n>              Number of nuclear types, background included; 0 for none. Read off the
                              checkpoint when left out; a contradiction is an error.
  --type_info_path=<path>     JSON file with name and colour of each type. Without it: those that the
                              checkpoint carries, or a default palette.
  --model_path=<path>         Checkpoint: .tar of the original repository or of this one, TensorFlow .npz,
                              tiatoolbox or MONAI .pth.
  --model_mode=<mode>         `original` or `fast`. Read off the checkpoint when left out.
  --nr_inference_workers=<n>  Threads that read images ahead of the network. [default: 8]
  --nr_post_proc_workers=<n>  Processes that turn network maps into nuclei; 0 for none. [default: 16]
  --batch_size=<n>            Patches a GPU at once; halved when memory runs out, at most 4 on a CPU. [default: 128]
  --precision=<p>             auto (fp32), fp32, bf16 or fp16. [default: auto]
  --window=<n>                Side in px of the pieces that the network reads: the patch of the mode (270 for
                              `original`, 256 for `fast`) when left out; larger is faster and needs more memory.
  --overwrite                 Do again what is already there.

Commands:
  tile    images (PNG, JPEG, TIFF, BMP, ...) that fit into memory

`run_infer.py <command> --help` shows the options of a command.
"""

from __future__ import annotations

import logging
import sys
import time

from docopt import docopt

TILE_CLI = """Segment and classify nuclei in image tiles.

Usage:
  tile (--input_dir=<path>) (--output_dir=<path>) [options]

Options:
  -h --help              Show this text.
  --input_dir=<path>     Folder with the images.
  --output_dir=<path>    Folder for the results: json/ mat/ overlay/ (and qupath/). Images whose results are
                         there are skipped.
  --mpp=<um>             Micrometres per pixel of the images. They are resized to what the network was trained
                         at, and the nuclei mapped back. Left out: the network reads them as they are.
  --mem_usage=<share>    Share of the free memory that images under way may take. [default: 0.2]
  --draw_dot             Mark the centroids in the overlay.
  --line_thickness=<px>  Width of the outlines in the overlay. [default: 2]
  --save_qupath          Write qupath/<name>.geojson (outlines) and .tsv (points) too.
  --save_raw_map         Add the network's maps to the .mat file (key `raw`).
  --save_type_probs      Add to the JSON the mean probability of every type for each nucleus (key `type_probs`).
  --pattern=<glob>       Which files of the folder are images. [default: *]
  --recursive            Look into sub-folders too.
"""


def main(argv: list[str] | None = None) -> int:
    args = docopt(__doc__, argv=argv, default_help=False, options_first=True, version="HoVer-Net toolkit 1.0.0")
    command, sub_argv = args["<command>"], args["<args>"]
    if command is None:
        print(__doc__.strip())
        return 0
    if command != "tile":
        print(f"run_infer.py: unknown command `{command}`; there is: tile", file=sys.stderr)
        return 2
    if args["--help"]:
        sub_argv = ["--help"]
    sub_args = docopt(TILE_CLI, argv=sub_argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        return run_tile(args, sub_args)
    except (ValueError, OSError) as error:
        print(f"run_infer.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run_tile(args: dict, sub_args: dict) -> int:
    """Check the options, run, and end with one line that says what was found and where it is."""
    run_args = {**common_options(args), **tile_options(sub_args)}
    method = method_options(args)
    from infer.options import TileOptions
    from infer.tile import InferManager

    start = time.perf_counter()
    options = TileOptions.from_dict(run_args)
    logging.info("options: %s", {**method, **run_args})
    manager = InferManager(method, args["--type_info_path"] or None, gpu=args["--gpu"], precision=args["--precision"])
    report = manager.process_file_list(options)
    found = ", ".join(f"{manager.type_info_dict[t][0]} {n}" for t, n in sorted(report.found.items(), key=str))
    print(
        f"{sum(report.found.values())} nuclei ({found or 'none'}) in {len(report.done)} images, "
        f"{len(report.skipped)} skipped, {len(report.failed)} failed, {time.perf_counter() - start:.1f} s; "
        f"overlays in {options.output_dir / 'overlay'}"
    )
    return report.exit_code


def method_options(args: dict) -> dict:
    """Return what says which network to load."""
    if not args["--model_path"]:
        raise ValueError("--model_path=<checkpoint> is missing")
    model_args = {"mode": args["--model_mode"] or None, "nr_types": integer(args, "--nr_types")}
    return {"model_path": args["--model_path"], "model_args": {k: v for k, v in model_args.items() if v is not None}}


def common_options(args: dict) -> dict:
    names = ("batch_size", "nr_inference_workers", "nr_post_proc_workers")
    options = {name: integer(args, f"--{name}") for name in names}
    return {**options, "patch_input_shape": integer(args, "--window"), "overwrite": args["--overwrite"]}


def tile_options(args: dict) -> dict:
    flags = ("draw_dot", "save_qupath", "save_raw_map", "save_type_probs", "recursive")
    return {
        "input_dir": args["--input_dir"],
        "output_dir": args["--output_dir"],
        "mpp": number(args, "--mpp"),
        "mem_usage": number(args, "--mem_usage"),
        "line_thickness": integer(args, "--line_thickness"),
        "pattern": args["--pattern"],
        **{flag: args[f"--{flag}"] for flag in flags},
    }


def integer(args: dict, name: str) -> int | None:
    return _number(args, name, int, "a whole number")


def number(args: dict, name: str) -> float | None:
    return _number(args, name, float, "a number")


def _number(args: dict, name: str, kind: type, what: str):
    if args[name] in (None, ""):
        return None
    try:
        return kind(args[name])
    except ValueError as error:
        raise ValueError(f"{name} takes {what}, got `{args[name]}`") from error


if __name__ == "__main__":
    sys.exit(main())
