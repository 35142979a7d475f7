"""Segment and classify nuclei in images and whole slides.

Usage:
  run_infer.py [options] (tile | wsi | merge) [<args>...]
  run_infer.py --version
  run_infer.py (-h | --help)

Options:
  -h --help                   Show this text.
  --version                   Show version.
%s
Commands:
  tile    images (PNG, JPEG, TIFF, BMP, ...) that fit into memory
  wsi     whole slides of any size
  merge   join what jobs that shared slides found (wsi --shard)

`run_infer.py <command> --help` shows the options of a command. Options may stand before the command or after it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from misc.batch import print_failed, run_script
from misc.cli import number, run_command
from misc.files import printable
from misc.shard import ASKED, ENDED, PARTS_DIR, Joined, join_parts
from misc.summary import Row, Summary
from misc.text import counted

# Options that say which slides, and who does them.
OF_COHORTS = ("--input_dir", "--slides", "--pattern", "--recursive", "--shard", "--cluster", "--nr_workers", "--help")


def main(argv: list[str] | None = None) -> int:
    return run_command(__doc__, run, argv, commands)


def commands() -> tuple[str, dict[str, str]]:
    """Return the options of both commands, and the help text of each."""
    from infer.options import COMMON_TEXT, MERGE_TEXT, TILE_TEXT, WSI_TEXT

    return COMMON_TEXT, {"tile": TILE_TEXT, "wsi": WSI_TEXT, "merge": MERGE_TEXT}


def run(args: dict) -> int:
    """Run the command; it ends with one line that says what was found and where it is."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    if args["merge"]:
        return run_merge(args)
    return (run_tile if args["tile"] else run_wsi)(args)


def run_tile(args: dict) -> int:
    """Segment images."""
    from infer.options import TileOptions

    options, method = TileOptions.from_args(args), method_options(args)
    from infer.tile import InferManager

    start = time.perf_counter()
    logging.debug("options: %s", {**method, **vars(options)})
    manager = load(InferManager, method, args)
    report = manager.process_file_list(options)
    print_failed("run_infer.py", report.failed)
    page = page_of(args, options, report, report.failed)
    print(f"{summary(manager, report, 'image', start)}; overlays in {options.output_dir / 'overlay'}{page}")
    if report.warning:
        logging.warning("%s", report.warning)
    return report.exit_code


def run_wsi(args: dict) -> int:
    """Segment slides."""
    from infer.options import WsiOptions

    options, method = WsiOptions.from_args(args), method_options(args)
    if args["--cluster"]:
        return run_cluster(args, options)
    from infer.wsi import InferManager

    logging.debug("options: %s", {**method, **vars(options)})
    manager = load(InferManager, method, args)
    if options.shard != ASKED:
        return run_slides(args, options, manager)
    manager.workers = []
    for shard in map(str.strip, sys.stdin):
        asked = replace(options, shard=shard)
        code = run_script("run_infer.py", lambda asked=asked: run_slides(args, asked, manager))
        print(ENDED.format(shard=shard, code=code), flush=True)
    return 0


def run_slides(args: dict, options, manager) -> int:
    """Segment slides with a network that is loaded."""
    start = time.perf_counter()
    report = manager.process_wsi_list(options)
    print_failed("run_infer.py", report.failed)
    if options.stage == "predict":
        print(say_predicted(len(report.done), len(report.skipped), len(report.failed), options.output_dir))
        return report.exit_code
    lines = PARTS_DIR if options.shard else "summary.csv"
    where = f"in {options.upload or options.output_dir / 'json'}, summary in {options.output_dir / lines}"
    page = "" if options.shard or options.upload else page_of(args, options, report, {})
    print(f"{summary(manager, report, 'slide', start)}; {where}{page}")
    return report.exit_code


def run_cluster(args: dict, options) -> int:
    """Hand slides out; each is a run of this script."""
    from misc.cluster import check_where, run_cohort
    from misc.slides.cohort import find_cohort
    from misc.usage import option_names

    gpus, nr_workers = args["--gpu"].split(","), number(args, "--nr_workers", int)
    check_where(args["--cluster"], nr_workers)
    if options.shard:
        raise ValueError("--cluster hands out all slides; --shard is for jobs that something else starts")
    slides, unusable = find_cohort(
        options.input_dir, options.slides, options.pattern, options.recursive, options.output_dir
    )
    given = {name: args[name] for name in args if name.startswith("--") and name not in OF_COHORTS}
    words = {
        name: name if value is True else f"{name}={value}"
        for name, value in given.items()
        if value not in (None, False)
    }
    common = option_names(commands()[0])
    command = [sys.executable, str(Path(__file__).resolve())]
    command += [*(words[name] for name in words if name in common), "wsi"]
    command += [words[name] for name in words if name not in common]
    local = gpus if args["--cluster"] == "local" and len(gpus) > 1 else []
    joined = run_cohort(slides, command, options.output_dir, args["--cluster"], nr_workers or len(gpus), local)
    table = Summary(options.output_dir / "summary.csv")
    for path, reason in unusable.items():
        joined.failed[printable(path.name)] = reason
        table.put(Row(printable(path.name), reason=reason))
    return say_joined(args, joined, None if options.recursive else options.input_dir)


def run_merge(args: dict) -> int:
    """Join the lines of the shards of a cohort."""
    return say_joined(args, join_parts(Path(args["--output_dir"])))


def say_joined(args: dict, joined: Joined, image_dir: Path | None = None) -> int:
    """Print what became of a cohort, and write its report; return the exit code."""
    output_dir, page = Path(args["--output_dir"]), ""
    print_failed("run_infer.py", joined.failed)
    if joined.done and not args["--no_report"] and not args.get("--upload"):
        from viewer.report.make import say_report

        page = f", {say_report(output_dir, image_dir=image_dir, failed={})}"
    if joined.predicted:
        print(say_predicted(len(joined.predicted), len(joined.done), len(joined.failed), output_dir))
    found = f"{counted(joined.nuclei, 'nucleus')} in {counted(len(joined.done), 'slide')}"
    print(f"{found}, {len(joined.failed)} failed or missing; summary in {output_dir / 'summary.csv'}{page}")
    return 1 if joined.failed else 0


def load(manager: type, method: dict, args: dict):
    """Load the network. --stage=segment needs only its settings, and takes the precision of the maps."""
    gpu, precision = args["--gpu"], args["--precision"] or "auto"
    if args.get("--stage") == "segment":
        gpu, precision = "", "auto"
    return manager(method, args["--type_info_path"] or None, gpu=gpu, precision=precision)


def say_predicted(done: int, skipped: int, failed: int, output_dir: Path) -> str:
    """Return what became of slides whose maps were asked for."""
    where = f"maps in {output_dir / 'maps'}; --stage=segment makes nuclei of them"
    return f"{counted(done, 'slide')} predicted, {skipped} skipped, {failed} failed, {where}"


def page_of(args: dict, options, report, failed: dict[str, str]) -> str:
    """Write the report where there is something new, and return the words that say so."""
    if args["--no_report"] or not (report.done or report.failed):
        return ""
    from viewer.report.make import say_report

    images = None if options.recursive else options.input_dir  # pictures are looked up by name in one folder
    return f", {say_report(options.output_dir, image_dir=images, failed=failed)}"


def summary(manager, report, kind: str, start: float) -> str:
    """Return what a run found, by type, and how large."""
    from misc.nuclei_features import say_diameter

    size = say_diameter(report.diameters_um)
    found = ", ".join(f"{manager.type_info_dict[t][0]} {n}" for t, n in sorted(report.found.items(), key=str))
    return (
        f"{counted(sum(report.found.values()), 'nucleus')} ({found or 'none'}) in {counted(len(report.done), kind)}, "
        f"{len(report.skipped)} skipped, {len(report.failed)} failed, {time.perf_counter() - start:.1f} s"
        f"{size and '; ' + size}"
    )


def method_options(args: dict) -> dict:
    """Return what says which network to load."""
    if not args["--model_path"]:
        raise ValueError("--model_path=<checkpoint> is missing")
    if args["--gpu"].lower() == "mps":  # read when PyTorch is loaded: what Apple's GPU lacks is computed on the CPU
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    nr_types = number(args, "--nr_types", int, zero=True) if args["--nr_types"] else None
    model_args = {"mode": args["--model_mode"] or None, "nr_types": nr_types}
    return {"model_path": args["--model_path"], "model_args": model_args}


if __name__ == "__main__":
    sys.exit(main())
