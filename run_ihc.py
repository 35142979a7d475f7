"""Score DAB in nuclei: classes on the tissue, regions, hot spots, tables and pictures of images and slides.

Usage:
  run_ihc.py [options] --input_dir=<path> --output_dir=<path>
  run_ihc.py (-h | --help)

Options:
  -h --help                 Show this text.
  --input_dir=<path>        Folder with images and slides.
  --output_dir=<path>       Folder for the results; made if it is not there. The same command goes on where one was
                            stopped; slides whose options or regions changed are scored again.
  --marker=<name>           Preset of thresholds, hot spots and categories: ki67, er, pr or generic. HER2 and PD-L1 are
                            scored on membranes, which this tool does not find. [default: generic]
  --stain=<vectors>         Colours of haematoxylin and DAB: auto (found on each slide), default (Ruifrok and
                            Johnston's), or two vectors of optical density, r,g,b:r,g,b. [default: auto]
  --classes=<how>           od: by the DAB density of the nucleus and --thresholds. kmeans: the limits of moderate and
                            strong by three-way k-means of all slides. types: by the names of the network's types.
                            [default: od]
  --thresholds=<list>       Median DAB optical density above the slide's background from which a nucleus is weak,
                            moderate, strong. Left out: the marker's.
  --min_contrast=<od>       Weak and moderate nuclei have at least so much more DAB than the ring of 2 um around them;
                            others are negative, since cytoplasm and membranes lie over nuclei, too. 0 asks for none,
                            as does --classes=types. [default: 0.05]
  --min_area=<um2>          Smaller nuclei (debris, caps of nuclei) are in no share: outlined in grey, not counted. 0
                            counts all, as does --classes=types. [default: 10]
  --regions=<folder>        Outlines of regions by the name of the slide: QuPath's GeoJSON, or XML of Sedeen, ASAP,
                            ImageScope. Class `Tissue` says where there is tissue, `Hot spot` which fields are scored.
  --include=<list>          Classes of regions that are scored, as Tumor,Stroma. Left out: all but those excluded.
  --exclude=<list>          Classes of regions whose nuclei are not counted, for example Necrosis.
  --hotspot_field_mm2=<n>   Area of a hot spot. Left out: the marker's.
  --hotspot_shape=<shape>   square or circle. Left out: the marker's.
  --hotspot_by=<rank>       Hot spots are ranked by index or by the number of positive nuclei (positive). Left out: the
                            marker's.
  --min_nuclei=<n>          A hot spot grows until it holds so many. Left out: the marker's.
  --min_tissue=<share>      Least share of a hot spot that is tissue, not glass: 0 to 1. If no field has so much, the
                            field with the most nuclei is taken and flagged. [default: 0.7]
  --top_k=<n>               Most hot spots of a slide. Left out: the marker's.
  --vmax=<n>                Positive nuclei per mm2 that have the last colour of all density maps. Left out: the highest
                            of the run.
  --compare=<csv>           scores.csv of another run, or a table with columns slide and positive_percent: limits of
                            agreement and intraclass correlation.
  --mpp=<um>                Micrometres per px, if the files do not say it or are wrong. Without it, images that do not
                            say it are read as they are, and flagged.
  --json_dir=<path>         Nuclei that were found before, <slide>.json; the network does not run.
  --gpu=<id>                Comma-separated GPU ids; mps for Apple's; empty for the CPU. [default: 0]
  --model_path=<path>       Checkpoint. Left out: the one that ships for DAB.
  --type_info_path=<path>   JSON with the names of the network's types. Left out: what the checkpoint says.
  --nr_post_proc_workers=<n>  Processes that turn network maps into nuclei; 0 for none. [default: 16]
  --pattern=<glob>          Which files of the folder to read. [default: *]
  --overwrite               Replace results that exist.
  --no_report               Write no report.html, the page to look at in the output folder.

In the output folder: scores.csv (a row for each slide, region and hot spot), cohort_index.png, cohort_classes.png;
compare.csv, agreement.csv and agreement.png with --compare. For each slide: json/ (nuclei whose type is their class),
qupath/ (the same as detections, with densities), nuclei/ (as a table), sedeen/, overlay/ (classes in colour: an image
whole; of a slide an overview and each hot spot), density/, histogram/, regions/ (tissue, regions and hot spots: edit
them in QuPath and give the folder as --regions), measured/ (densities), segmentation/ (what run_infer.py writes).
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from misc.cli import number, run_command

if TYPE_CHECKING:
    from infer.run import Report
    from misc.ihc.dab.options import DabOptions

# The checkpoint that ships for DAB.
MODEL_PATH = Path(__file__).with_name("pretrained") / "hovernet_ihc_fast_w025_30x.tar"
# A file that does not say its pixel size is an image, up to this longer side, px; larger ones are slides, which must.
IMAGE_PX = 8000


def main(argv: list[str] | None = None) -> int:
    return run_command(__doc__, score_all, argv)


def score_all(args: dict) -> int:
    """Find the nuclei, score them, and say what came of it."""
    from misc.batch import print_failed
    from misc.ihc.dab.run import DabRun

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    start = time.perf_counter()
    options = parse(args)
    inputs = find_inputs(options.image_dir, args["--pattern"], options.output_dir, options.mpp)
    if not args["--json_dir"]:
        inputs.failed |= segment(inputs, options, args)
    names = [name for name in inputs.names if name not in inputs.failed]
    report = DabRun(options, names, inputs.failed).all()
    print_failed("run_ihc.py", report.failed)
    page = ""
    if not args["--no_report"] and (report.done or report.failed):
        from viewer.report.make import say_report

        page = f", {say_report(options.output_dir, image_dir=options.image_dir, failed=report.failed)}"
    print(
        f"{len(report.done)} scored, {len(report.kept)} there already, {len(report.failed)} failed, "
        f"{time.perf_counter() - start:.1f} s; table in {options.output_dir / 'scores.csv'}{page}"
    )
    return report.exit_code


def parse(args: dict) -> DabOptions:
    """Turn docopt's strings into values and check their combinations, before any work."""
    from misc.ihc.dab.options import BY_TYPES, DabOptions, check
    from misc.ihc.markers import marker
    from misc.ihc.stain_estimate import parse_stain

    changes = {name: number(args, f"--{name}", kind) for name, kind in (("min_nuclei", int), ("top_k", int))}
    changes |= {"field_mm2": number(args, "--hotspot_field_mm2"), "shape": args["--hotspot_shape"]}
    changes |= {name: number(args, f"--{name}", zero=True) for name in ("min_tissue", "min_contrast")}
    changes["min_area_um2"] = number(args, "--min_area", zero=True)
    if args["--classes"] == BY_TYPES:
        changes |= {"min_contrast": 0.0, "min_area_um2": 0.0}
    changes |= {"ranked_by": args["--hotspot_by"], "thresholds": _thresholds(args)}
    output, json_dir = Path(args["--output_dir"]), args["--json_dir"]
    return check(
        DabOptions(
            image_dir=Path(args["--input_dir"]),
            output_dir=output,
            json_dir=Path(json_dir) if json_dir else output / "segmentation" / "json",
            marker=marker(args["--marker"], **changes),
            stain=parse_stain(args["--stain"]),
            classes=args["--classes"],
            regions=Path(args["--regions"]) if args["--regions"] else None,
            include=_names(args["--include"]),
            exclude=_names(args["--exclude"]),
            mpp=number(args, "--mpp"),
            vmax=number(args, "--vmax"),
            compare=Path(args["--compare"]) if args["--compare"] else None,
            overwrite=args["--overwrite"],
        )
    )


@dataclass
class Inputs:
    """What the input folder holds: images, slides, and the reason of each file that is neither, by name."""

    images: list[Path] = field(default_factory=list)
    slides: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        from misc.files import full_stem

        return sorted(full_stem(path) for path in (*self.images, *self.slides))


def find_inputs(folder: Path, pattern: str, output_dir: Path, mpp: float | None) -> Inputs:
    """Look through the input folder; dark pictures, which fluorescence is, are refused before the network runs."""
    from misc.batch import recorded
    from misc.files import check_unique_stems, full_stem
    from misc.ihc.stain_estimate import check_bright
    from misc.slides.folder import find_slides
    from misc.slides.image import open_image
    from misc.slides.picture import is_picture

    ours = output_dir.resolve()
    inside = folder.resolve() in ours.parents  # images may lie in the output folder, too
    found = find_slides(folder, pattern, leave_out=lambda path: inside and ours in path.resolve().parents)
    inputs = Inputs(failed={path.name: reason for path, reason in found.unusable.items()})
    pictures = [path for path in found.others if is_picture(path)]
    if others := sorted(path.name for path in found.others if path not in pictures):
        print(f"no images and no slides, left out: {', '.join(others)}")
    check_unique_stems([*found.slides, *pictures])
    for path in (*found.slides, *pictures):
        with recorded(inputs.failed, full_stem(path)):
            image = open_image(path)
            check_bright(image.thumbnail())
            is_image = image.mpp_xy is None and max(image.width, image.height) <= IMAGE_PX
            (inputs.images if is_image else inputs.slides).append(path)
    if not (inputs.images or inputs.slides or inputs.failed):
        raise FileNotFoundError(f"no image or slide matches {pattern} in {folder}")
    return inputs


def segment(inputs: Inputs, options: DabOptions, args: dict) -> dict[str, str]:
    """Find the nuclei of all images and slides; return the reason of each that failed."""
    from infer import tile, wsi
    from misc.slides.resolution import say_guessed

    method = {"model_path": args["--model_path"] or MODEL_PATH}
    run_args = {"input_dir": options.image_dir, "output_dir": options.output_dir / "segmentation", "mpp": options.mpp}
    run_args |= {"nr_post_proc_workers": args["--nr_post_proc_workers"], "overwrite": options.overwrite}
    run_args["ink"] = "keep"  # DAB is as brown as ink, whatever a checkpoint for H&E recommends
    reports: list[Report] = []
    if inputs.images:
        manager = tile.InferManager(method, args["--type_info_path"], gpu=args["--gpu"])
        mpp = options.mpp or manager.model_mpp  # what it reads images as that do not say theirs
        if options.mpp is None:
            nr_images = len(inputs.images) + len(inputs.slides)
            logging.warning("%s", say_guessed(dict.fromkeys((p.name for p in inputs.images), ""), nr_images, mpp))
        reports.append(manager.process_file_list({**run_args, "mpp": mpp}, inputs.images))
    if inputs.slides:
        manager = wsi.InferManager(method, args["--type_info_path"], gpu=args["--gpu"])
        reports.append(manager.process_wsi_list(run_args, inputs.slides))
    return {name: reason for report in reports for name, reason in report.failed.items()}


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _thresholds(args: dict) -> tuple[float, ...] | None:
    text = args["--thresholds"]
    try:
        return tuple(float(part) for part in text.split(",")) if text else None
    except ValueError:
        raise ValueError(f"--thresholds takes three numbers, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
