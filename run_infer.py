"""Segment and classify nuclei in image tiles and whole slides.

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
  wsi     whole slides of any size

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
                         there are skipped; those made with another checkpoint, thresholds or options stay and are
                         reported, unless --overwrite is given.
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

WSI_CLI = """Segment and classify nuclei in whole slides.

Usage:
  wsi (--input_dir=<path>) (--output_dir=<path>) [options]

Options:
  -h --help                Show this text.
  --input_dir=<path>       Folder with the slides; files that are none are listed and passed over.
  --output_dir=<path>      Folder for the results: json/ (and qupath/ thumb/ mask/), summary.csv. Slides whose results
                           are there are skipped, those made with other options are reported; an interrupted run
                           goes on with the same command.
  --cache_path=<path>      Folder for finished tiles of slides under way, some hundred MB. Left out: in output_dir.
  --input_mask_dir=<path>  Folder with tissue masks <slide>.png; not black is tissue. Left out: Otsu at 1.25x.
  --mask_dir=<path>        The same.
  --proc_mag=<n>           Magnification to work at. Left out: the one the checkpoint was trained at, or 40.
  --mpp=<um>               Micrometres per pixel of the slides at level 0, where the files are silent or wrong.
  --mag=<n>                Or their objective power.
  --ambiguous_size=<px>    What a tile sees beyond its core. [default: 128]
  --chunk_shape=<px>       Largest side of what is read at once. [default: 10000]
  --tile_shape=<px>        Side of the pieces that are post-processed at once. [default: 2048]
  --save_thumb             Write thumb/<slide>.png, the slide at 1.25x.
  --save_mask              Write mask/<slide>.png, the tissue at 1.25x.
  --save_qupath            Write qupath/<slide>.geojson too, in px of level 0.
  --save_type_probs        Add to the JSON the mean probability of every type for each nucleus (key `type_probs`).
  --pattern=<glob>         Which files of the folder are slides. [default: *]
  --recursive              Look into sub-folders too.
"""


def main(argv: list[str] | None = None) -> int:
    args = docopt(__doc__, argv=argv, default_help=False, options_first=True, version="HoVer-Net toolkit 1.0.0")
    command, sub_argv = args["<command>"], args["<args>"]
    if command is None:
        print(__doc__.strip())
        return 0
    commands = {"tile": (TILE_CLI, run_tile), "wsi": (WSI_CLI, run_wsi)}
    if command not in commands:
        print(f"run_infer.py: unknown command `{command}`; there are: {', '.join(commands)}", file=sys.stderr)
        return 2
    text, run = commands[command]
    sub_defaults = docopt(text, argv=["--input_dir=", "--output_dir="])
    for name in (word.split("=")[0] for word in sub_argv):
        if name in args.keys() - sub_defaults.keys():
            print(f"run_infer.py: {name} is an option of both commands and goes before `{command}`", file=sys.stderr)
            return 2
    sub_args = filled(docopt(text, argv=["--help"] if args["--help"] else sub_argv), sub_defaults)
    args = filled(args, docopt(__doc__, argv=[command], options_first=True))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        return run(args, sub_args)
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


def run_wsi(args: dict, sub_args: dict) -> int:
    """Check the options, run, and end with one line that says what was found and where it is."""
    run_args = {**common_options(args), **wsi_options(sub_args)}
    method = method_options(args)
    from infer.options import WsiOptions
    from infer.wsi import InferManager

    start = time.perf_counter()
    options = WsiOptions.from_dict(run_args)
    logging.info("options: %s", {**method, **run_args})
    manager = InferManager(method, args["--type_info_path"] or None, gpu=args["--gpu"], precision=args["--precision"])
    report = manager.process_wsi_list(options)
    for name, reason in sorted(report.failed.items()):
        print(f"failed: {name}: {reason}", file=sys.stderr)
    found = ", ".join(f"{manager.type_info_dict[t][0]} {n}" for t, n in sorted(report.found.items(), key=str))
    print(
        f"{sum(report.found.values())} nuclei ({found or 'none'}) in {len(report.done)} slides, "
        f"{len(report.skipped)} skipped, {len(report.failed)} failed, {time.perf_counter() - start:.1f} s; "
        f"in {options.output_dir / 'json'}, summary in {options.output_dir / 'summary.csv'}"
    )
    return report.exit_code


def filled(args: dict, defaults: dict) -> dict:
    """Return the options with defaults for empty values, which run books pass; but an empty --gpu is the CPU."""
    return {name: defaults[name] if value == "" and name != "--gpu" else value for name, value in args.items()}


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


def wsi_options(args: dict) -> dict:
    if args["--input_mask_dir"] and args["--mask_dir"]:
        raise ValueError("--mask_dir is another name of --input_mask_dir; give one of them")
    return {
        "input_mask_dir": args["--input_mask_dir"] or args["--mask_dir"],
        **{name: args[f"--{name}"] for name in ("input_dir", "output_dir", "cache_path", "pattern")},
        **{name: integer(args, f"--{name}") for name in ("ambiguous_size", "chunk_shape", "tile_shape")},
        **{name: number(args, f"--{name}") for name in ("proc_mag", "mpp", "mag")},
        **{
            flag: args[f"--{flag}"]
            for flag in ("save_thumb", "save_mask", "save_qupath", "save_type_probs", "recursive")
        },
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
