"""Map where positive nuclei are dense, find the hot spots, and score the staining.

Usage:
  plot_heat_map.py [options] --json_dir=<path> --output_dir=<path>
  plot_heat_map.py (-h | --help)

Options:
  -h --help                 Show this text.
  --json_dir=<path>         Folder with the JSON files of run_infer.py (or one file).
  --output_dir=<path>       Folder to write to; made if it is not there.
  --wsi_dir=<path>          Folder with the slides (or images) of the same names. Without it: no overlays, and the
                            size of a slide is what its JSON says, or else what holds all of its nuclei.
  --tile_size=<px>          Side of the square bins in which nuclei are counted, level-0 px. [default: 50]
  --positive_types=<list>   Types that are positive. `all`: every nucleus; `dab`: by DAB density (needs --score).
                            Nuclei without types are all counted, with --score by DAB density. [default: 2,3,4]
  --top_k=<n>               Most hot spots of a slide. [default: 5]
  --hotspot_size=<px>       Side of a hot spot, level-0 px, rounded to whole bins. [default: 1000]
  --hotspot_um=<um>         The same in micrometres, instead of --hotspot_size.
  --sigma=<bins>            Gaussian that smooths the picture (not the counts), in bins. [default: 0.8]
  --mpp=<um>                Micrometres per level-0 px. Left out: what JSON or slide say.
  --ome_tiff                Write the density map as pyramidal OME-TIFF for QuPath, too.
  --score                   Measure the DAB density of each nucleus in its slide: classes negative, weak, moderate,
                            strong, H-score and Ki-67 index in summary.csv, and a histogram.
  --thresholds=<list>       Mean DAB optical density from which a nucleus is weak, moderate, strong.
                            [default: 0.2,0.4,0.6]
  --kmeans                  Find the limits between weak, moderate and strong by three-way k-means of the positive
                            nuclei of all slides together; the first of --thresholds still says what is positive.
  --pattern=<glob>          Which files of the folder to read. [default: *.[jJ][sS][oO][nN]]
  --overwrite               Redo pictures and sessions that are there; without it they are kept. Tables are always
                            written anew.

For each slide: heatmap/<name>.png, overlay/<name>.png, xml/<name>.session.xml (Sedeen), with --ome_tiff
ome_tiff/<name>.ome.tif, with --score score/<name>.png. For all of them: hotspots.csv, summary.csv.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from docopt import docopt

if TYPE_CHECKING:
    import numpy as np

    from misc.density_slide import PositiveTypes, SlideMap, SlideNuclei
    from misc.slide_image import SlideImage

# A hot spot of upstream's, in bins.
UPSTREAM_WINDOW = (20, 20)
# Sedeen wants a pixel size. Where none is known its unit is the px, as in the seed's files for images.
UNKNOWN_PIXEL_UM = 1.0
# What upstream's slides end with: the image's name in a session when nothing says it.
UPSTREAM_SUFFIX = ".svs"


@dataclass(frozen=True)
class Options:
    """The options, as typed values; the text above explains each."""

    json_dir: Path
    output_dir: Path
    wsi_dir: Path | None
    tile_size: int
    positive_types: PositiveTypes
    top_k: int
    hotspot_size: float
    hotspot_um: float | None
    sigma: float
    mpp: float | None
    ome_tiff: bool
    score: bool
    thresholds: tuple[float, float, float]
    kmeans: bool
    pattern: str
    overwrite: bool


@dataclass
class Report:
    """What a run did: rows of the tables, kept files, failures (name, reason), and DAB densities by slide."""

    summary: list[dict] = field(default_factory=list)
    hot_spots: list[dict] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    dab: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


def plot_density_map(json_path, output_dir, wsi_path=None, **changes) -> Report:
    """Draw density maps and find hot spots of all slides of a folder; upstream's name and order of arguments.

    Args:
        json_path, output_dir, wsi_path: folders; `wsi_path` may be `None`.
        **changes: options as in the text of this script, without dashes and with their types, e.g.
            `tile_size=100, positive_types=(2,)`.

    Raises:
        ValueError, FileNotFoundError: the options make no sense. What is wrong with one slide is in the report.
    """
    argv = [f"--json_dir={json_path}", f"--output_dir={output_dir}"]
    options = parse(docopt(__doc__, argv + ([f"--wsi_dir={wsi_path}"] if wsi_path else [])))
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
    from misc.density import find_hot_spots

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
    from misc.sedeen import box_graphics, write_session

    path = Path(output_dir) / "xml" / f"{base_name}.session.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    name = image_name or f"{base_name}{UPSTREAM_SUFFIX}"
    write_session(path, name, h, w, pixel_size_um or UNKNOWN_PIXEL_UM, box_graphics(bounding_box))
    return path


def main(argv: list[str] | None = None) -> int:
    args, start = docopt(__doc__, argv), time.perf_counter()
    try:
        options = parse(args)
        report = run(options)
    except (ValueError, OSError) as error:
        print(f"plot_heat_map.py: {error}", file=sys.stderr)
        return 1
    for name, reason in report.failed:
        print(f"plot_heat_map.py: failed: {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)
    if report.kept:
        print(f"{len(report.kept)} pictures and sessions were there already and are kept; --overwrite redoes them")
    good = [row for row in report.summary if not row["failed"]]
    print(
        f"{len(good)} of {len(report.summary)} slides mapped ({sum(row['nuclei'] for row in good)} nuclei, "
        f"{len(report.hot_spots)} hot spots, {time.perf_counter() - start:.1f} s), {len(report.failed)} failed; "
        f"results in {options.output_dir}"
    )
    return report.exit_code


def parse(args: dict) -> Options:
    """Turn docopt's strings into values and check their combinations, before any work."""
    positive = args["--positive_types"].strip()
    return check(
        Options(
            json_dir=Path(args["--json_dir"]),
            output_dir=Path(args["--output_dir"]),
            wsi_dir=Path(args["--wsi_dir"]) if args["--wsi_dir"] else None,
            tile_size=_number(args, "--tile_size", int),
            positive_types=positive if positive in ("all", "dab") else tuple(_list(args, "--positive_types", int)),
            top_k=_number(args, "--top_k", int),
            hotspot_size=_number(args, "--hotspot_size", float),
            hotspot_um=_number(args, "--hotspot_um", float),
            sigma=_number(args, "--sigma", float),
            mpp=_number(args, "--mpp", float),
            ome_tiff=args["--ome_tiff"],
            score=args["--score"],
            thresholds=tuple(_list(args, "--thresholds", float)),
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
    from misc.ihc_scores import check_thresholds

    for name in ("tile_size", "top_k", "hotspot_size", "hotspot_um", "mpp"):
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


def _number(args: dict, name: str, kind: Callable):
    values = _list(args, name, kind)
    if values is not None and len(values) != 1:
        raise ValueError(f"{name} is one number, got {args[name]!r}")
    return values and values[0]


def _list(args: dict, name: str, kind: Callable) -> list | None:
    try:
        return None if args[name] is None else [kind(value) for value in args[name].split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{name} takes {what}, got {args[name]!r}") from None


def run(options: Options) -> Report:
    """Map one slide after the other; what fails is recorded, the others are done."""
    from tqdm import tqdm

    from misc.density_tables import HOT_SPOT_COLUMNS, SUMMARY_COLUMNS, write_table
    from misc.files import full_stem

    files, report = find_inputs(options), Report()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tqdm(unit=" nuclei", unit_scale=True, disable=None) as bar:
        for path in files:
            try:
                one_slide(path, options, report, bar.update)
            except (ValueError, OSError) as error:
                report.failed.append((full_stem(path), str(error)))
                report.summary.append({"slide": full_stem(path), "failed": str(error)})
    if options.score:
        score_slides(options, report)
    write_table(options.output_dir / "hotspots.csv", report.hot_spots, HOT_SPOT_COLUMNS)
    write_table(options.output_dir / "summary.csv", report.summary, SUMMARY_COLUMNS, ("failed",))
    return report


def find_inputs(options: Options) -> list[Path]:
    """List the JSON files; results of two of them never have one name."""
    from misc.files import check_unique_stems, list_files

    if options.json_dir.is_file():
        return [options.json_dir]
    files = list_files(options.json_dir, options.pattern)
    if not files:
        raise ValueError(f"no file in {options.json_dir} matches {options.pattern}")
    check_unique_stems(files)
    return files


def one_slide(path: Path, options: Options, report: Report, progress: Callable[[int], object]) -> None:
    """Read, map and draw one slide, and add its rows to the report."""
    from misc.density_slide import load_slide, map_slide
    from misc.density_tables import hot_spot_rows, summary_row
    from misc.files import full_stem
    from misc.slide_image import find_image

    image = find_image(full_stem(path), options.wsi_dir) if options.wsi_dir else None
    slide = load_slide(path, image, options.mpp, options.score, progress)
    found = None
    if slide.width and slide.height:
        found = map_slide(
            slide,
            options.positive_types,
            options.thresholds,
            options.tile_size,
            window_px(options, slide),
            options.top_k,
            options.sigma,
        )
        rows = hot_spot_rows(found)
        draw(found, image, options, report)
        report.hot_spots.extend(rows)
    report.summary.append(summary_row(found, slide) | {"failed": None})
    if slide.dab is not None:
        report.dab[slide.name] = slide.dab
    say(found, slide)


def window_px(options: Options, slide: SlideNuclei) -> tuple[float, float]:
    """Return the sides (x, y) of a hot spot in level-0 px."""
    if options.hotspot_um is None:
        return options.hotspot_size, options.hotspot_size
    if slide.mpp_xy is None:
        raise ValueError(f"{slide.name}: --hotspot_um needs the pixel size; give --mpp or --wsi_dir")
    return options.hotspot_um / slide.mpp_xy[0], options.hotspot_um / slide.mpp_xy[1]


def draw(found: SlideMap, image: SlideImage | None, options: Options, report: Report) -> None:
    """Write the pictures, the session and the TIFF of a slide; those that are there are kept."""
    from misc import plots
    from misc.density_tiff import write_ome_tiff

    slide = found.slide
    density, unit = found.density()
    um = None if slide.mpp_xy is None else tuple(mpp * found.tile_size for mpp in slide.mpp_xy)
    picture = plots.MapPicture(
        density, unit, found.tile_size, slide.width, slide.height, slide.mpp_xy, found.boxes_px, slide.name
    )
    out = options.output_dir
    tasks = {
        out / "heatmap" / f"{slide.name}.png": lambda path: plots.save(plots.heat_map(picture), path),
        out / "xml" / f"{slide.name}.session.xml": lambda path: create_xml(
            slide.name, slide.width, slide.height, found.boxes_px, out, slide.image_name, slide.mpp_xy
        ),
    }
    if image:
        tasks[out / "overlay" / f"{slide.name}.png"] = lambda path: plots.save(
            plots.overlay(picture, image.thumbnail()), path
        )
    if options.ome_tiff:
        tasks[out / "ome_tiff" / f"{slide.name}.ome.tif"] = lambda path: write_ome_tiff(
            path, density, um, slide.name, unit
        )
    write_missing(tasks, options, report)


def score_slides(options: Options, report: Report) -> None:
    """Grade the nuclei of all slides, with limits found on all of them if asked; add columns, draw histograms."""
    from misc import plots
    from misc.density_tables import score_columns
    from misc.ihc_scores import classify, cohort_thresholds, score

    thresholds = options.thresholds
    if options.kmeans:
        try:
            thresholds = cohort_thresholds(list(report.dab.values()), options.thresholds[0])
        except ValueError as error:
            report.failed.append(("--kmeans", str(error)))
            return
        print(
            f"k-means of {len(report.dab)} slides: moderate from {thresholds[1]:.3f}, strong from {thresholds[2]:.3f}"
        )
    for row in report.summary:
        dab = report.dab.get(row["slide"])
        if dab is None:
            continue
        scored = score(classify(dab, thresholds))
        row |= score_columns(scored, thresholds)
        path = options.output_dir / "score" / f"{row['slide']}.png"
        figure = plots.dab_histogram(dab, thresholds, scored, row["slide"])
        write_missing({path: lambda target, figure=figure: plots.save(figure, target)}, options, report)
        print(f"{row['slide']}: {plots.describe(scored)}")


def write_missing(tasks: dict[Path, Callable[[Path], object]], options: Options, report: Report) -> None:
    """Write the files that are not there yet, or all of them with `--overwrite`."""
    for path, write in tasks.items():
        if path.exists() and not options.overwrite:
            report.kept.append(path)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)


def say(found: SlideMap | None, slide: SlideNuclei) -> None:
    """Print a slide's line, and what a person should know about it."""
    from tqdm import tqdm

    positive = f", {found.positive.sum()} counted, {len(found.sums)} hot spots" if found else ""
    best = f" (the first holds {found.sums[0]})" if found and len(found.sums) else ""
    tqdm.write(f"{slide.name}: {slide.width} x {slide.height} px, {len(slide)} nuclei{positive}{best}")
    for note in (found.slide if found else slide).notes:
        tqdm.write(f"  {note}")


if __name__ == "__main__":
    sys.exit(main())
