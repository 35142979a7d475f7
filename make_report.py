"""Make a page of a folder of results, to look at: report.html, which opens from disk and needs no network.

Usage:
  make_report.py --results_dir=<path> [options]
  make_report.py (-h | --help)

Options:
  -h --help              Show this text.
  --results_dir=<path>   Folder of results: of run_infer.py or the original, of plot_heat_map.py, of
                         compute_stats.py --out, or a log folder of run_train.py. report.html is written there.
  --image_dir=<path>     Folder with the images, for pictures of fields with outlines.
  --wsi_dir=<path>       The same, with slides.
  --json_dir=<path>      Folder with the nuclei, where they lie elsewhere (results of plot_heat_map.py).
  --pred_dir=<path>      Label files that were scored, for pictures of the worst and best images.
  --true_dir=<path>      Their truth.
  --ext=<ext>            How label files end. [default: .mat]

Of more than 100 slides each has a page of its own, in report_pages/.
"""

from __future__ import annotations

import sys
from pathlib import Path

from misc.cli import run_command


def main(argv: list[str] | None = None) -> int:
    return run_command(__doc__, run, argv)


def run(args: dict) -> int:
    from viewer.report.make import make_report

    if args["--image_dir"] and args["--wsi_dir"]:
        raise ValueError("give --image_dir or --wsi_dir, not both")
    folders = {"image_dir": args["--image_dir"] or args["--wsi_dir"]}
    folders |= {name: args[f"--{name}"] for name in ("json_dir", "pred_dir", "true_dir")}
    for name, folder in folders.items():
        if folder and not Path(folder).is_dir():
            raise FileNotFoundError(f"no such folder: {folder} (--{name})")
    given = {name: Path(folder) if folder else None for name, folder in folders.items()}
    print(f"written: {make_report(Path(args['--results_dir']), ext=args['--ext'], **given)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
