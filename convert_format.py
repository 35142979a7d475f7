"""Convert nuclei, of run_infer.py (JSON) or of other programs, for QuPath, Sedeen, spreadsheets and our own scripts.

Usage:
  convert_format.py [options] --input=<path> --output_dir=<path>
  convert_format.py (-h | --help)

Options:
  -h --help                Show this text.
  --input=<path>           A file of nuclei, or a folder of them.
  --output_dir=<path>      Folder to write to; made if it is not there.
  --to=<format>            geojson: outlines for QuPath, <name>.geojson.
                           tsv: points for QuPath, <name>.tsv.
                           qupath: both of these.
                           sedeen: a session for Sedeen, <name>.session.xml.
                           csv: a table of shape and stain, <name>.csv.
                           parquet: the table and outlines, <name>.parquet (GeoParquet for geopandas, DuckDB, QGIS;
                           needs requirements-parquet.txt).
                           h5ad: the table as AnnData for scanpy and squidpy (needs requirements-anndata.txt).
                           spatialdata: table and outlines, folder <name>.zarr (needs requirements-spatialdata.txt).
                           dicom: Microscopy Bulk Simple Annotations of a DICOM slide, which --wsi_dir must hold,
                           <name>.ann.dcm (needs requirements-dicom.txt).
                           json: our own file, <name>.json, which all scripts read; of others' files (--from).
                           [default: geojson]
  --from=<program>         Whose files: hovernet (JSON of run_infer.py), tiatoolbox (AnnotationStore .db, .dat), cellvit
                           (cells.json, cells.geojson), hovernext (pinst_pp.zip, needs requirements-zarr.txt), geojson
                           (QuPath, InstanSeg), labels (StarDist, Cellpose: .tif, .png, .npy), or auto: what the file
                           looks like. [default: auto]
  --gz                     Compress GeoJSON (<name>.geojson.gz, which QuPath reads).
  --type_info_path=<path>  JSON with name and colour of each type. Left out: what the file says, else a palette.
  --scale=<n>              Level-0 pixels per pixel of the JSON. Left out: what the file says, else the magnification of
                           the image over that of the JSON (`mag`), else 1.
  --mpp=<um>               Micrometres per level-0 pixel. Left out: what the JSON or the image says.
  --image_dir=<path>       Folder with the images of the same names: size and pixel size for Sedeen, optical densities
                           for the CSV table, magnification and scanned part where a JSON does not say them.
  --wsi_dir=<path>         The same, with slides.
  --stain=<pair>           Stains to measure: he (haematoxylin, eosin) or hdab (haematoxylin, DAB). [default: he]
  --pens=<which>           Colours in Sedeen: types (as type_info) or lab (1 red, 2 blue, 3 violet, 4 green).
                           [default: types]
  --pattern=<glob>         Which files of the folder to convert. Left out: those called as --from has them; with auto
                           all JSON.
  --recursive              Look into the folders of the folder, too.
  --overwrite              Replace results that exist. Without it they are skipped.

Results are in level-0 pixels, at whatever magnification the nuclei were found. If a slide says which part of level 0
was scanned (MIRAX, Leica), QuPath shows only that part, and files for QuPath count from its corner.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from misc.batch import print_failed, recorded
from misc.cli import number, run_command
from misc.text import counted

if TYPE_CHECKING:
    from misc.formats.foreign_outlines import Foreign
    from misc.formats.nuclei_table import NucleiTable
    from misc.formats.slide_facts import SlideFacts
    from misc.nuclei import Nuclei
    from misc.slides.image import SlideImage
    from misc.type_info import TypeInfo

FORMATS: dict[str, tuple[str, ...]] = {
    "geojson": (".geojson",),
    "tsv": (".tsv",),
    "qupath": (".geojson", ".tsv"),
    "sedeen": (".session.xml",),
    "csv": (".csv",),
    "parquet": (".parquet",),
    "h5ad": (".h5ad",),
    "spatialdata": (".zarr",),
    "dicom": (".ann.dcm",),
    "json": (".json",),
}
# Formats that say more with the image beside the JSON, and take longer for it.
_WITH_IMAGE = (".xml", ".csv", ".parquet", ".h5ad", ".zarr", ".dcm", ".json")


@dataclass(frozen=True)
class Options:
    """The options, as typed values; the text above explains each."""

    input: Path
    output_dir: Path
    suffixes: tuple[str, ...]
    type_info: TypeInfo | None
    scale: float | None
    mpp: float | None
    image_dir: Path | None
    stain: str
    lab_pens: bool
    program: str
    pattern: str | None
    recursive: bool
    overwrite: bool


@dataclass(frozen=True)
class Source:
    """One file of nuclei, and all that is known of its image."""

    path: Path
    nuclei: Foreign
    facts: SlideFacts
    type_info: TypeInfo
    image: SlideImage | None


def to_qupath(file_path, nuc_pos_list, nuc_type_list, type_info_dict) -> None:
    """Write points for QuPath; kept under this name for those who import it from here."""
    from misc.formats.qupath import to_qupath as write

    write(file_path, nuc_pos_list, nuc_type_list, type_info_dict)


def main(argv: list[str] | None = None) -> int:
    return run_command(__doc__, lambda args: convert_all(parse(args)), argv)


def parse(args: dict) -> Options:
    """Turn docopt's strings into values and check their combinations, before any work."""
    from misc.formats.foreign import NAMES
    from misc.ihc.stain import STAINS
    from misc.type_info import load_type_info

    target = args["--to"]
    for option, value, allowed in (
        ("--to", target, FORMATS),
        ("--from", args["--from"], ("auto", *NAMES)),
        ("--stain", args["--stain"], STAINS),
        ("--pens", args["--pens"], ("types", "lab")),
    ):
        if value not in allowed:
            raise ValueError(f"{option} is one of {', '.join(allowed)}, got {value!r}")
    if args["--gz"] and ".geojson" not in FORMATS[target]:
        raise ValueError(f"--gz compresses GeoJSON only; leave it out with --to={target}")
    if args["--image_dir"] and args["--wsi_dir"]:
        raise ValueError("give --image_dir or --wsi_dir, not both")
    image_dir = args["--image_dir"] or args["--wsi_dir"]
    if image_dir and not Path(image_dir).is_dir():
        raise FileNotFoundError(f"no such folder: {image_dir}")
    type_info = args["--type_info_path"]
    return Options(
        input=Path(args["--input"]),
        output_dir=Path(args["--output_dir"]),
        suffixes=tuple(s + ".gz" * (args["--gz"] and s == ".geojson") for s in FORMATS[target]),
        type_info=load_type_info(type_info) if type_info else None,
        scale=number(args, "--scale"),
        mpp=number(args, "--mpp"),
        image_dir=Path(image_dir) if image_dir else None,
        stain=args["--stain"],
        lab_pens=args["--pens"] == "lab",
        program=args["--from"],
        pattern=args["--pattern"],
        recursive=args["--recursive"],
        overwrite=args["--overwrite"],
    )


def find_inputs(options: Options) -> list[Path]:
    """List the files to convert; results of two of them never have one name."""
    from misc.files import check_unique_stems, list_files
    from misc.formats.foreign import has_name_of, result_stem

    if options.input.is_file():
        return [options.input]
    if not options.input.is_dir():
        raise FileNotFoundError(f"no such file or folder: {options.input}")
    files = list_files(options.input, options.pattern or "*", options.recursive)
    if options.pattern is None:
        files = [path for path in files if has_name_of(path, options.program)]
    if not files:
        what = f"matches {options.pattern}" if options.pattern else f"is called as those of --from={options.program}"
        raise ValueError(f"no file in {options.input} {what}")
    check_unique_stems(files, result_stem)
    return files


def convert_all(options: Options) -> int:
    """Convert one file after the other; what fails is reported, the others are done."""
    from tqdm import tqdm

    from misc.formats.foreign import result_stem

    files = find_inputs(options)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    start, done, skipped, total, left_out, failed = time.perf_counter(), 0, 0, 0, 0, {}
    with tqdm(unit=" nuclei", unit_scale=True, disable=None) as bar:
        for path in files:
            targets = [options.output_dir / f"{result_stem(path)}{suffix}" for suffix in options.suffixes]
            if not options.overwrite:
                targets = [target for target in targets if not target.exists()]
            if not targets:
                skipped += 1
                continue
            with recorded(failed, str(path)):
                nuclei, without_outline = convert(path, targets, options, bar.update)
                done, total, left_out = done + 1, total + nuclei, left_out + without_outline
    print_failed("convert_format.py", failed)
    if left_out:
        print(f"left out (no outline): {counted(left_out, 'nucleus')} with fewer than three contour points")
    print(
        f"{done} of {counted(len(files), 'file')} converted ({counted(total, 'nucleus')}, "
        f"{time.perf_counter() - start:.1f} s), {skipped} there already, {len(failed)} failed; in {options.output_dir}"
    )
    return 1 if failed else 0


def convert(path: Path, targets: list[Path], options: Options, progress=lambda count: None) -> tuple[int, int]:
    """Convert one file to each of `targets`.

    Returns:
        Its number of nuclei, and how many of them a format left out.

    Raises:
        ValueError, OSError: in one line, what is wrong with the file or missing for the format.
    """
    from tqdm import tqdm

    writers = {
        **dict.fromkeys((".geojson", ".gz"), _to_geojson),
        **{".tsv": _to_tsv, ".xml": _to_sedeen, ".json": _to_json},
        **{".csv": _to_csv, ".parquet": _to_parquet, ".h5ad": _to_h5ad, ".zarr": _to_spatialdata, ".dcm": _to_dicom},
    }
    if path.resolve() in [target.resolve() for target in targets]:
        raise ValueError("the result would overwrite the input; give another --output_dir")
    source = open_source(path, options, with_image=any(t.suffix in _WITH_IMAGE for t in targets))
    for note in (*source.nuclei.notes, *source.facts.notes):
        tqdm.write(f"{path.name}: {note}")
    count = 0

    def counted() -> Iterator[Nuclei]:
        nonlocal count
        count = 0
        for part in source.nuclei.parts():
            count += len(part)
            progress(len(part))
            yield part

    left_out = 0
    for target in targets:
        written = writers[target.suffix](target, counted(), source, options)
        left_out = max(left_out, count - written)
    return count, left_out


def open_source(path: Path, options: Options, with_image: bool) -> Source:
    """Gather what options, the file and the image say; an option goes before the file, the file before the image."""
    from misc.formats.foreign import OURS, kind_of, read_nuclei, result_stem
    from misc.formats.nuclei_json import read_header, types_from_header
    from misc.formats.slide_facts import says_all, slide_facts
    from misc.slides.image import find_image
    from misc.type_info import default_type_info
    from models.hovernet.post_proc import measure

    kind = kind_of(path) if options.program == "auto" else options.program
    needed = with_image or kind != OURS or not says_all(read_header(path))
    image = find_image(result_stem(path), options.image_dir) if needed and options.image_dir else None
    nuclei = read_nuclei(path, kind, image, options.type_info, measure)
    header = nuclei.header
    return Source(
        path=path,
        nuclei=nuclei,
        facts=slide_facts(path, header, image, options.scale, options.mpp),
        # a palette for every type there can be, as the types are known only at the end of the file
        type_info=options.type_info or types_from_header(header) or default_type_info(256),
        image=image,
    )


def _inside(parts: Iterator[Nuclei], facts: SlideFacts) -> Iterator[Nuclei]:
    """Yield the nuclei; refuse those that lie outside the image, where its size is known."""
    from misc.formats.slide_facts import level0_xy
    from misc.ihc.density import SLACK_PX, check_inside

    for part in parts:
        if facts.width:
            check_inside(level0_xy(part, facts.scale), facts.width, facts.height, max(SLACK_PX, facts.scale))
        yield part


def _to_geojson(target: Path, parts: Iterator[Nuclei], source: Source, options: Options) -> int:
    from misc.formats.qupath import write_geojson

    return write_geojson(target, parts, source.type_info, source.facts.scale, origin_xy=source.facts.origin_xy)


def _to_tsv(target: Path, parts: Iterator[Nuclei], source: Source, options: Options) -> int:
    import numpy as np

    from misc.formats.qupath import qupath_xy

    positions, types = [np.zeros((0, 2))], []
    for part in parts:  # points only: 24 bytes a nucleus
        positions.append(qupath_xy(part.centroids_xy, source.facts.scale, source.facts.origin_xy))
        types.extend([None] * len(part) if part.types is None else part.types.tolist())
    to_qupath(target, np.concatenate(positions), types, source.type_info)
    return len(types)


def _to_json(target: Path, parts: Iterator[Nuclei], source: Source, options: Options) -> int:
    from misc.formats.nuclei_json import write_json
    from misc.formats.slide_facts import header_of

    header = header_of(
        source.nuclei.header, source.facts, source.image, source.type_info if options.type_info else None
    )
    return write_json(target, _inside(parts, source.facts), header.pop("mag"), header)


def _to_csv(target: Path, parts: Iterator[Nuclei], source: Source, options: Options) -> int:
    from misc.formats.csv_table import write_csv

    return write_csv(target, _table(parts, source, options))


def _to_parquet(target: Path, parts: Iterator[Nuclei], source: Source, options: Options) -> int:
    from misc.formats.parquet import write_parquet

    return write_parquet(target, _table(parts, source, options))


def _to_h5ad(target: Path, parts: Iterator[Nuclei], source: Source, options: Options) -> int:
    from misc.formats.h5ad import write_h5ad

    return write_h5ad(target, _table(parts, source, options))


def _to_spatialdata(target: Path, parts: Iterator[Nuclei], source: Source, options: Options) -> int:
    from misc.formats.spatial import write_spatialdata

    return write_spatialdata(target, _table(parts, source, options))


def _to_dicom(target: Path, parts: Iterator[Nuclei], source: Source, options: Options) -> int:
    from misc.formats.dicom_annotations import write_dicom

    if source.image is None:
        raise ValueError(f"{source.path}: DICOM annotations are of a DICOM slide; give --wsi_dir")
    return write_dicom(target, _table(parts, source, options), options.image_dir / source.image.name)


def _table(parts: Iterator[Nuclei], source: Source, options: Options) -> NucleiTable:
    from misc.formats.nuclei_table import NucleiTable

    facts = source.facts
    mpp = None if facts.mpp_xy is None else sum(facts.mpp_xy) / 2
    nuclei = _inside(parts, facts)
    return NucleiTable(nuclei, source.type_info, facts.scale, mpp, source.image, options.stain, workers=True)


def _to_sedeen(target: Path, parts: Iterator[Nuclei], source: Source, options: Options) -> int:
    from misc.formats.sedeen import LAB_PENS, nuclei_graphics, write_session

    facts = source.facts
    missing = [key for key in ("name", "width", "height") if not getattr(facts, key)]
    if missing:
        raise ValueError(
            f"{source.path}: a Sedeen session needs the image's {', '.join(missing)}, which the file does not say; "
            "give --image_dir or --wsi_dir"
        )
    if facts.mpp_xy is None:
        raise ValueError(f"{source.path}: a Sedeen session needs the pixel size; give --mpp=<um per level-0 pixel>")
    pens = LAB_PENS if options.lab_pens else None
    graphics = nuclei_graphics(_inside(parts, facts), source.type_info, facts.scale, pens)
    return write_session(target, facts.name, facts.width, facts.height, facts.mpp_xy, graphics)


if __name__ == "__main__":
    sys.exit(main())
