"""Map where positive nuclei are dense, find the hot spots, and score the staining.

Usage:
  plot_heat_map.py [options] --json_dir=<path> --output_dir=<path>
  plot_heat_map.py (-h | --help)

Options:
  -h --help                 Show this text.
  --json_dir=<path>         Folder with the JSON files of run_infer.py (or one file).
  --output_dir=<path>       Folder to write to; made if it is not there.
  --wsi_dir=<path>          Folder with the slides (or images) of the same names. Without it there are no
                            overlays, and the size of a slide is what its JSON says, or else holds all its nuclei.
  --tile_size=<px>          Side of the square bins in which nuclei are counted, level-0 px. [default: 50]
  --positive_types=<list>   Types that are positive, by name or number: Positive or 2,3,4. `all`: every nucleus; `dab`:
                            by DAB density (needs --score). Left out: every type whose name says positive, weak,
                            moderate or strong; in files that name no types: 2 weak, 3 moderate, 4 strong.
                            Nuclei without types are all counted, with --score by DAB density.
  --type_info_path=<path>   JSON with the names of the types. Left out: what the JSON says.
  --top_k=<n>               Most hot spots of a slide. [default: 5]
  --hotspot_size=<px>       Side of a hot spot, level-0 px, rounded to whole bins. [default: 1000]
  --hotspot_um=<um>         The same in micrometres, instead of --hotspot_size.
  --sigma=<bins>            Gaussian that smooths the picture (not the counts), in bins. [default: 0.8]
  --mpp=<um>                Micrometres per level-0 px. Left out: what JSON or slide say.
  --scale=<n>               Level-0 px per px of the JSON. Left out: what the JSON says, else the magnification of the
                            slide over that of the JSON (`mag`), else 1.
  --ome_tiff                Write the density map as pyramidal OME-TIFF for QuPath, too.
  --score                   Measure the DAB density of each nucleus in its slide: classes negative, weak, moderate,
                            strong and H-score in summary.csv and hotspots.csv, a table of the nuclei, a histogram.
  --thresholds=<list>       Mean DAB optical density from which a nucleus is weak, moderate, strong.
                            [default: 0.2,0.4,0.6]
  --kmeans                  Find the limits between weak, moderate and strong by three-way k-means of the positive
                            nuclei of all slides together; the first of --thresholds still says what is positive.
  --pattern=<glob>          Which files of the folder to read. [default: *.[jJ][sS][oO][nN]]
  --no_report               Write no report.html, the page to look at in the output folder.
  --overwrite               Replace pictures and sessions. Without it they are kept, and a run with other options is
                            refused. Tables and files of --score are always written again.

For each slide: heatmap/<name>.png; overlay/<name>.png with --wsi_dir; xml/<name>.session.xml (Sedeen) where name, size
and pixel size of the slide are known; ome_tiff/<name>.ome.tif with --ome_tiff; score/<name>.png and score/<name>.csv
(one row a nucleus) with --score. For all of them: hotspots.csv and summary.csv, in which slides of earlier runs stay,
and options.json. In the tables `positive` and its shares are by --positive_types; `dab_*`, `h_score` and `ki67_index`
are by DAB density. Nuclei without a measured density are not part of the DAB shares.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from misc.batch import print_failed
from misc.cli import number, numbers, read, run_command
from misc.text import counted

if TYPE_CHECKING:
    from misc.ihc.heat_map.run import Options, Report

# A hot spot of upstream's, in bins.
UPSTREAM_WINDOW = (20, 20)
# Sedeen wants a pixel size. Where none is known its unit is the px.
UNKNOWN_PIXEL_UM = 1.0
# What upstream's slides end with: the image's name in a session when nothing says it.
UPSTREAM_SUFFIX = ".svs"


def plot_density_map(json_path, output_dir, wsi_path=None, **changes) -> Report:
    """Draw density maps and find hot spots of all slides of a folder; upstream's name and order of arguments.

    Args:
        json_path, output_dir, wsi_path: folders; `wsi_path` may be `None`.
        **changes: options as in the text of this script, without dashes and with their types, e.g.
            `tile_size=100, positive_types=(2,)`.

    Raises:
        ValueError, FileNotFoundError: the options make no sense. What is wrong with one slide is in the report.
    """
    from misc.ihc.heat_map.run import run

    argv = [f"--json_dir={json_path}", f"--output_dir={output_dir}"]
    options = parse(read(__doc__, argv + ([f"--wsi_dir={wsi_path}"] if wsi_path else [])))
    unknown = changes.keys() - vars(options).keys()
    if unknown:
        raise ValueError(f"no such option: {', '.join(sorted(unknown))}")
    return run(check(replace(options, **changes)))


def most_positive_cord_center(input_1, topk, window=UPSTREAM_WINDOW):
    """Find the `topk` fullest windows of a map that do not overlap (touching is allowed), best first.

    Args:
        input_1: (rows, columns) counts of positive nuclei by bin.
        topk: most windows; fewer come back when no further one holds a nucleus.
        window: (rows, columns) of the window, in bins.

    Returns:
        (K, 4) int64 boxes [x0, y0, x1, y1] in bins, x1 and y1 exclusive.
    """
    from misc.ihc.density import find_hot_spots

    return find_hot_spots(input_1, topk, tuple(window))[0]


def create_xml(base_name, h, w, bounding_box, output_dir, image_name=None, pixel_size_um=None) -> Path:
    """Write hot spots as a session for Sedeen, `<output_dir>/xml/<base_name>.session.xml`.

    Args:
        base_name: name of the session.
        h: WIDTH of the slide, level-0 px. Upstream calls it `h` and passes the width; its order of arguments,
            (name, width, height, boxes, folder), is kept, and so are the names.
        w: HEIGHT of the slide, level-0 px.
        bounding_box: (K, 4) [x0, y0, x1, y1] in level-0 px, best first.
        output_dir: folder.
        image_name: full file name of the slide, by which Sedeen finds it; upstream's `<base_name>.svs` if left out.
        pixel_size_um: um per px, one number or (x, y); 1 if left out.
    """
    from misc.formats.sedeen import box_graphics, write_session

    path = Path(output_dir) / "xml" / f"{base_name}.session.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    name = image_name or f"{base_name}{UPSTREAM_SUFFIX}"
    write_session(path, name, h, w, pixel_size_um or UNKNOWN_PIXEL_UM, box_graphics(bounding_box))
    return path


def main(argv: list[str] | None = None) -> int:
    return run_command(__doc__, map_all, argv)


def map_all(args: dict) -> int:
    """Check the options, map the slides, and say what came of it."""
    from misc.ihc.heat_map.run import run

    start = time.perf_counter()
    options = parse(args)
    report = run(options)
    print_failed("plot_heat_map.py", report.failed)
    if report.kept:
        print(f"kept: {counted(len(report.kept), 'file')} of earlier runs; --overwrite redoes them")
    good = [row for row in report.summary if not row["failed"]]
    page = ""
    if not args["--no_report"]:
        from viewer.report.make import say_report

        page = f", {say_report(options.output_dir, image_dir=options.wsi_dir, json_dir=options.json_dir)}"
    print(
        f"{len(good)} of {counted(len(report.summary), 'slide')} mapped "
        f"({counted(sum(row['nuclei'] for row in good), 'nucleus')}, {counted(len(report.hot_spots), 'hot spot')}, "
        f"{time.perf_counter() - start:.1f} s), {len(report.failed)} failed; results in {options.output_dir}{page}"
    )
    return report.exit_code


def parse(args: dict) -> Options:
    """Turn docopt's strings into values and check their combinations, before any work."""
    from misc.ihc.heat_map.run import Options
    from misc.type_info import load_type_info, split_types

    positive, type_info = (args["--positive_types"] or "").strip(), args["--type_info_path"]
    return check(
        Options(
            json_dir=Path(args["--json_dir"]),
            output_dir=Path(args["--output_dir"]),
            wsi_dir=Path(args["--wsi_dir"]) if args["--wsi_dir"] else None,
            tile_size=number(args, "--tile_size", int),
            positive_types=positive if positive in ("all", "dab") else split_types(positive) or None,
            type_info=load_type_info(type_info) if type_info else None,
            top_k=number(args, "--top_k", int),
            hotspot_size=number(args, "--hotspot_size"),
            hotspot_um=number(args, "--hotspot_um"),
            sigma=number(args, "--sigma", zero=True),
            mpp=number(args, "--mpp"),
            scale=number(args, "--scale"),
            ome_tiff=args["--ome_tiff"],
            score=args["--score"],
            thresholds=tuple(numbers(args, "--thresholds")),
            kmeans=args["--kmeans"],
            pattern=args["--pattern"],
            overwrite=args["--overwrite"],
        )
    )


def check(options: Options) -> Options:
    """Return the options.

    Raises:
        ValueError, FileNotFoundError: in one line, which option is wrong and why.
    """
    from misc.ihc.scores import check_thresholds

    for name in ("tile_size", "top_k", "hotspot_size", "hotspot_um", "mpp", "scale"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} is a positive number, got {value}")
    if not 0 <= options.sigma < float("inf"):
        raise ValueError(f"--sigma is a number from 0 on, got {options.sigma}")
    if not options.json_dir.exists():
        raise FileNotFoundError(f"no such file or folder: {options.json_dir}")
    if options.wsi_dir and not options.wsi_dir.is_dir():
        raise FileNotFoundError(f"no such folder: {options.wsi_dir}")
    if options.score and not options.wsi_dir:
        raise ValueError("--score measures DAB in the slides; give --wsi_dir")
    if not options.score and (options.kmeans or options.positive_types == "dab"):
        raise ValueError("--kmeans and --positive_types=dab need --score")
    return replace(options, thresholds=check_thresholds(options.thresholds))


if __name__ == "__main__":
    sys.exit(main())
