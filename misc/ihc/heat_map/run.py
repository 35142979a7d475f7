"""A run of `plot_heat_map.py`: slides one after the other, then what needs all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from misc.batch import recorded
from misc.files import check_unique_stems, full_stem, list_files
from misc.ihc import plots
from misc.ihc.heat_map.pictures import draw, missing_for_session
from misc.ihc.heat_map.run_options import RunOptions
from misc.ihc.heat_map.score_slide import Measured, score_slide
from misc.ihc.heat_map.slide import PositiveTypes, SlideMap, SlideNuclei, load_slide, map_slide
from misc.ihc.heat_map.tables import HOT_SPOT_COLUMNS, SUMMARY_COLUMNS, hot_spot_rows, summary_row
from misc.ihc.scores import cohort_thresholds
from misc.slides.image import find_image
from misc.tables import earlier_rows, merge_table
from misc.text import counted
from misc.type_info import TypeInfo

# Options that change no result: where things are, and what is done again.
NOT_REMEMBERED = ("json_dir", "output_dir", "pattern", "overwrite", "ome_tiff", "type_info")


@dataclass(frozen=True)
class Options:
    """The options, as typed values; the text of the script explains each."""

    json_dir: Path
    output_dir: Path
    wsi_dir: Path | None
    tile_size: int
    positive_types: PositiveTypes
    type_info: TypeInfo | None
    top_k: int
    hotspot_size: float
    hotspot_um: float | None
    sigma: float
    mpp: float | None
    scale: float | None
    ome_tiff: bool
    score: bool
    thresholds: tuple[float, float, float]
    kmeans: bool
    pattern: str
    overwrite: bool


@dataclass
class Report:
    """What a run did: rows of the tables, kept files, the reason of each failure, and what was measured, by slide."""

    summary: list[dict] = field(default_factory=list)
    hot_spots: list[dict] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


def run(options: Options) -> Report:
    """Map one slide after the other; what fails is recorded, the others are done."""
    files, report = find_inputs(options), Report()
    names, out = [full_stem(path) for path in files], options.output_dir
    made_by = earlier_options(options, names)
    tables = [(out / "hotspots.csv", report.hot_spots, HOT_SPOT_COLUMNS, ())]
    tables.append((out / "summary.csv", report.summary, SUMMARY_COLUMNS, ("failed",)))
    for path, *_ in tables:
        earlier_rows(path, names)  # what is no table is refused before any work
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(unit=" nuclei", unit_scale=True, disable=None) as bar:
        for name, path in zip(names, files, strict=True):
            with recorded(report.failed, name):
                one_slide(path, options, made_by, report, bar.update)
            if name in report.failed:
                report.summary.append({"slide": name, "failed": report.failed[name]})
    if options.score:
        score_slides(options, report)
    for path, rows, first, last in tables:
        merge_table(path, rows, names, first, last)
    if made_by.stale:
        print(f"made with other options, and not redone by this run: {', '.join(made_by.stale)}")
    return report


def earlier_options(options: Options, names: list[str]) -> RunOptions:
    """Compare the options that change results with those of the results that are there, before any work."""
    values = {name: value for name, value in vars(options).items() if name not in NOT_REMEMBERED}
    values["wsi_dir"] = options.wsi_dir is not None
    if not options.score:
        del values["thresholds"], values["kmeans"]
    have = {full_stem(path) for path in (options.output_dir / "heatmap").glob("*.png")}
    return RunOptions(options.output_dir / "options.json", values, names, have, options.overwrite)


def find_inputs(options: Options) -> list[Path]:
    """List the JSON files; results of two of them never have one name."""
    if options.json_dir.is_file():
        return [options.json_dir]
    files = list_files(options.json_dir, options.pattern)
    if not files:
        raise ValueError(f"no file in {options.json_dir} matches {options.pattern}")
    check_unique_stems(files)
    return files


def one_slide(
    path: Path, options: Options, made_by: RunOptions, report: Report, progress: Callable[[int], object]
) -> None:
    """Read, map and draw one slide, and add its rows to the report."""
    image = find_image(full_stem(path), options.wsi_dir) if options.wsi_dir else None
    slide = load_slide(path, image, options.mpp, options.score, progress, options.scale, options.type_info)
    found, rows = None, []
    if slide.width and slide.height:
        window = window_px(options, slide)
        found = map_slide(
            slide, options.positive_types, options.thresholds, options.tile_size, window, options.top_k, options.sigma
        )
        rows = hot_spot_rows(found)
        made_by.write()
        report.kept += draw(found, image, options.output_dir, options.ome_tiff, options.overwrite)
        made_by.done(slide.name)
        slide = found.slide
        if missing := missing_for_session(slide):
            slide.notes.append(f"no session for Sedeen, which needs {missing}")
    report.hot_spots += rows
    report.summary.append(summary_row(found, slide) | {"failed": None})
    if slide.dab is not None:
        report.measured[slide.name] = Measured.of(path, slide, found)
    say(found, slide)


def window_px(options: Options, slide: SlideNuclei) -> tuple[float, float]:
    """Return the sides (x, y) of a hot spot in level-0 px."""
    if options.hotspot_um is None:
        return options.hotspot_size, options.hotspot_size
    if slide.mpp_xy is None:
        raise ValueError(f"{slide.name}: --hotspot_um needs the pixel size; give --mpp or --wsi_dir")
    return options.hotspot_um / slide.mpp_xy[0], options.hotspot_um / slide.mpp_xy[1]


def score_slides(options: Options, report: Report) -> None:
    """Grade the nuclei of all slides, with limits found on all of them if asked; add columns, write score/."""
    thresholds = options.thresholds
    if options.kmeans:
        with recorded(report.failed, "--kmeans"):
            thresholds = cohort_thresholds([one.dab for one in report.measured.values()], thresholds[0])
        if "--kmeans" in report.failed:
            return
        limits = f"moderate from {thresholds[1]:.3f}, strong from {thresholds[2]:.3f}"
        print(f"k-means of {counted(len(report.measured), 'slide')}: {limits}")
    rows = {row["slide"]: row for row in report.summary}
    for name, measured in report.measured.items():
        spots = [row for row in report.hot_spots if row["slide"] == name]
        with recorded(report.failed, name):
            scored = score_slide(measured, thresholds, rows[name], spots, options.output_dir / "score")
            print(f"{name}: {plots.describe(scored)}")
        rows[name]["failed"] = report.failed.get(name)


def say(found: SlideMap | None, slide: SlideNuclei) -> None:
    """Print a slide's line, and what a person should know about it."""
    words = f" ({found.counted})" if found and found.counted else ""
    positive = f", {found.positive.sum()} counted{words}, {counted(len(found.sums), 'hot spot')}" if found else ""
    best = f" (the first holds {found.sums[0]})" if found and len(found.sums) else ""
    tqdm.write(f"{slide.name}: {slide.width} x {slide.height} px, {counted(len(slide), 'nucleus')}{positive}{best}")
    for note in slide.notes:
        tqdm.write(f"  {note}")
