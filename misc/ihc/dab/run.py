"""A run of `run_ihc.py` over slides whose nuclei are found: measure, classify, score, write; then all together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from misc.batch import recorded
from misc.files import file_digest, full_stem
from misc.formats.nuclei_json import read_header
from misc.ihc.dab.cohort import draw_cohort, read_rows
from misc.ihc.dab.files import draw_overlay, paths_of, write_classes, write_files
from misc.ihc.dab.found import FoundNuclei, load_nuclei, measure_slide
from misc.ihc.dab.maps import draw_maps, keep_map
from misc.ihc.dab.options import BY_KMEANS, BY_TYPES, DabOptions
from misc.ihc.dab.slide import DabSlide, Stained, origin, score_slide
from misc.ihc.dab.table import FIRST_COLUMNS, LAST_COLUMNS, failed_row, line, score_rows
from misc.ihc.markers import describe
from misc.ihc.panel import save_picture
from misc.ihc.plots import dab_histogram
from misc.ihc.region_files import file_of, find_files, load_regions
from misc.ihc.regions import Chosen, choose
from misc.ihc.scores import cohort_thresholds
from misc.slides.image import SlideImage, find_image
from misc.tables import earlier_rows, merge_table

# Key of the JSON files of classes that holds what they depend on.
RUN_KEY = "ihc"
TABLE = "scores.csv"


@dataclass
class DabReport:
    """What became of the slides: scored now, scored before, and the reason of each that failed."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


class DabRun:
    """One run.

    Args:
        options: of the run.
        names: of the slides, as their JSON files are called.
        failed: slides that failed before, and why: they get a row, too.

    Attributes:
        report: what became of them so far.
    """

    def __init__(self, options: DabOptions, names: Sequence[str], failed: dict[str, str]):
        self.options, self.names = options, list(names)
        self.report = DabReport(failed=dict(failed))
        self.table = options.output_dir / TABLE
        self.region_files = find_files(options.regions) if options.regions else {}
        self.marker = options.marker
        earlier_rows(self.table, self.names)  # what is no table is refused before any work
        if options.compare:
            read_rows(options.compare)

    def all(self) -> DabReport:
        """Score the slides one after the other, then draw what needs all of them."""
        options, report = self.options, self.report
        options.output_dir.mkdir(parents=True, exist_ok=True)
        print("\n".join(describe(options.marker)))
        self._say_strangers()
        if options.overwrite:
            for name in self.names:
                self._measured_path(name).unlink(missing_ok=True)
        if options.classes == BY_KMEANS:
            self._find_thresholds()
        in_table = {row["slide"] for row in earlier_rows(self.table, ())}
        for name in self.names:
            with recorded(report.failed, name):
                self._one(name, name in in_table)
        rows = [failed_row(name, reason) for name, reason in report.failed.items()]
        merge_table(self.table, rows, list(report.failed), FIRST_COLUMNS, LAST_COLUMNS)
        paths = {name: paths_of(name, options.output_dir) for name in (*report.done, *report.kept)}
        maps, regions = ({name: of[kind] for name, of in paths.items()} for kind in ("density", "regions"))
        with recorded(report.failed, "density maps"):
            draw_maps(maps, regions, options.image_dir, options.vmax)
        with recorded(report.failed, "cohort"):
            draw_cohort(self.table, options.marker, options.compare)
        return report

    def _say_strangers(self) -> None:
        """Say which files of regions belong to no slide of the run."""
        known = {*self.names, *self.report.failed}
        strange = [name for name in self.region_files if not {name, full_stem(name)} & known]
        if strange:
            print(f"--regions: of no slide of this run: {', '.join(sorted(strange))}")

    def _find_thresholds(self) -> None:
        """Measure all slides, and find moderate and strong on their positive nuclei together."""
        found, failed = [], {}
        for name in self.names:
            with recorded(failed, name):  # it fails again when it is scored
                image = find_image(name, self.options.image_dir)
                found.append(self._measure(name, self._load(name, image), image).dab)
        self.marker = replace(self.marker, thresholds=cohort_thresholds(found, self.marker.thresholds[0]))
        limits = ", ".join(f"{limit:.3f}" for limit in self.marker.thresholds)
        print(f"k-means of {len(found)} slides: weak, moderate, strong from {limits}")

    def _load(self, name: str, image: SlideImage) -> FoundNuclei:
        return load_nuclei(self.options.json_dir / f"{name}.json", image, self.options)

    def _measure(self, name: str, slide: FoundNuclei, image: SlideImage) -> Stained:
        path, given = self._measured_path(name), self.options.stain
        with tqdm(total=len(slide.nuclei), unit=" nuclei", desc=name, disable=None, leave=False) as bar:
            densities, model = measure_slide(slide, image, given, path, bar.update)
        return Stained(densities, model, densities.ground())

    def _measured_path(self, name: str) -> Path:
        return self.options.output_dir / "measured" / f"{name}.npz"

    def _one(self, name: str, is_in_table: bool) -> None:
        """Score a slide and write its files, unless they are there."""
        image = find_image(name, self.options.image_dir)
        nuclei, drawn = self._load(name, image), file_of(self.region_files, image.name)
        depends = self._depends(nuclei, drawn)
        if is_in_table and not self.options.overwrite and self._is_done(name, depends):
            self.report.kept.append(name)
            return
        stained, chosen = self._measure(name, nuclei, image), self._regions(drawn, image)
        by_types = self.options.classes == BY_TYPES
        slide = score_slide(name, image, nuclei, stained, chosen, self.marker, by_types)
        if self.options.regions and drawn is None:
            slide = replace(slide, notes=(*slide.notes, "no file in --regions: the whole slide"))
        write_slide(slide, self.options.output_dir, {RUN_KEY: depends})
        rows = score_rows(name, slide.scores, slide.marker, slide.facts())
        rows[0]["flags"] = "; ".join([*filter(None, [rows[0]["flags"]]), *slide.notes])
        merge_table(self.table, rows, [name], FIRST_COLUMNS, LAST_COLUMNS)
        self.report.done.append(name)
        tqdm.write("\n  ".join([line(name, slide.scores), *slide.notes, *slide.scores.overall.flags]))

    def _depends(self, nuclei: FoundNuclei, drawn: Path | None) -> dict:
        """Return what the results of a slide depend on, as JSON gives it back."""
        options = self.options
        values = asdict(self.marker) | {name: getattr(options, name) for name in ("classes", "include", "exclude")}
        values |= {"stain": options.stain and options.stain.words(), "regions": drawn and file_digest(drawn)}
        return json.loads(json.dumps(values | {"nuclei": nuclei.made}))

    def _is_done(self, name: str, depends: dict) -> bool:
        paths = paths_of(name, self.options.output_dir)
        try:
            return all(path.is_file() for path in paths.values()) and read_header(paths["json"])[RUN_KEY] == depends
        except (ValueError, KeyError, OSError):
            return False

    def _regions(self, path: Path | None, image: SlideImage) -> Chosen:
        """Read the regions of a slide.

        Raises:
            ValueError: it has none of a class that is asked for.
        """
        options = self.options
        if path is None and options.include:
            raise ValueError(f"{image.name}: --regions has no file of it, and --include={','.join(options.include)}")
        drawn = load_regions(path, origin(image)) if path else []
        try:
            return choose(drawn, options.include, options.exclude)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def write_slide(slide: DabSlide, folder: Path, made: dict) -> None:
    """Write all files of a slide; the JSON file, which stands for all, first goes and is then the last to come."""
    paths = paths_of(slide.name, folder)
    paths["json"].unlink(missing_ok=True)
    write_files(slide, folder)
    draw_overlay(slide, folder)
    overall = slide.scores.overall
    title, what = slide.image.name, "median DAB optical density of the nucleus, above the background"
    dab, classes = slide.stained.dab[overall.members], slide.nuclei.types[overall.members]
    histogram = dab_histogram(dab, slide.marker.thresholds, overall.scored.score, title, what, classes)
    save_picture(histogram, paths["histogram"])
    keep_map(slide, paths["density"])
    write_classes(slide, folder, made)
