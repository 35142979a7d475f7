"""The options of a run, typed; the help texts here are the only list of names and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from misc.files import printable, unusable_name
from misc.usage import option_names

COMMON_TEXT = """
  --gpu=<id>                  Comma-separated GPU ids; mps for Apple's; empty for the CPU. [default: 0]
  --nr_types=<n>              Number of nuclear types, background included; 0 for none. Read off the
                              checkpoint when left out; a contradiction is an error.
  --type_info_path=<path>     JSON file with name and colour of each type. Without it: those that the
                              checkpoint carries, or a default palette.
  --model_path=<path>         Checkpoint: .tar of the original repository or of this one, TensorFlow .npz,
                              tiatoolbox or MONAI .pth.
  --model_mode=<mode>         `original` or `fast`. Read off the checkpoint when left out.
  --nr_inference_workers=<n>  Threads that read ahead of the network. [default: 8]
  --nr_post_proc_workers=<n>  Processes that turn network maps into nuclei; 0 for none. [default: 16]
  --batch_size=<n>            Patches of the mode's own size per GPU and batch; fewer for a larger window; halved
                              when memory runs out; at most 4 on a CPU. [default: 128]
  --precision=<p>             auto, fp32, bf16, fp16 or tf32. auto is what the checkpoint recommends, where the
                              machine has it; else as the original computes: TF32 convolutions on a GPU, fp32 on
                              a CPU. [default: auto]
  --window=<n>                Side in px of the patches that the network reads: what the checkpoint recommends or the
                              patch of the mode (270 for `original`, 256 for `fast`, 264 for two networks in one) when
                              left out. Larger is faster and needs more memory; it is cut to what an image needs.
  --np_threshold=<p>          A pixel is nuclear at this probability or more: lower for larger outlines. Left out: what
                              the checkpoint says, or 0.5 as in the original.
  --edges=<way>               How touching nuclei are parted: at edges along x and y, relative to the strongest ones of
                              the tile (axes), or in any direction, on a fixed scale (directions). Left out: what the
                              checkpoint says, or axes as in the original.
  --min_prob=<p>              Leave out nuclei whose pixels have a lower mean probability; 0 keeps all. Left out: what
                              the checkpoint says, or 0 as in the original.
  --ink=<way>                 Nuclei with the colour of ink or dark pigment, which haematoxylin cannot have: keep or
                              drop them (not in DAB, which is brown). Left out: what the checkpoint says, or keep as in
                              the original.
  --tta                       Predict each patch and its mirror images, and take the mean: four times as slow, for
                              somewhat better outlines.
  --overwrite                 Redo results that are already there.
  --no_report                 Write no report.html, the page to look at in the output folder.
"""

TILE_TEXT = """Segment and classify nuclei in images.

Usage:
  run_infer.py tile --input_dir=<path> --output_dir=<path> [options]

Options:
  -h --help              Show this text.
  --input_dir=<path>     Folder with the images.
  --output_dir=<path>    Folder for the results: json/ mat/ overlay/ (and qupath/). Images whose results are
                         there are skipped; those made with another checkpoint, thresholds or options stay and are
                         reported, unless --overwrite is given.
  --mpp=<um>             Micrometres per pixel of the images. The network reads them at what it was trained at; nuclei
                         are outlined in the images' own pixels. Left out: what each file says (TIFF, OME, PNG, JPEG);
                         a file that says nothing is read as it is, with a warning. Given, it counts for all images,
                         also for those whose files say otherwise.
  --mem_usage=<share>    Share of the free memory that images in progress may take. [default: 0.2]
  --draw_dot             Mark the centroids in the overlay.
  --line_thickness=<px>  Width of the outlines in the overlay. [default: 2]
  --save_qupath          Write qupath/<name>.geojson (outlines) and .tsv (points) too.
  --save_raw_map         Add the network's maps to the .mat file (key `raw`).
  --save_type_probs      Add to the JSON the mean probability of every type for each nucleus (key `type_probs`).
  --pattern=<glob>       Which files of the folder are images. Tables, texts and annotations among them are left out.
                         [default: *]
  --recursive            Look into sub-folders too.
"""

WSI_TEXT = """Segment and classify nuclei in whole slides.

Usage:
  run_infer.py wsi (--input_dir=<path> | --slides=<csv>) --output_dir=<path> [options]

Options:
  -h --help                Show this text.
  --input_dir=<path>       Folder with the slides; other files are listed and left out.
  --slides=<csv>           Or a table with a line for each slide: column `path`, and mpp, mag, mask, regions (file of
                           annotations: no tissue outside) where it needs them; others are carried to summary.csv.
  --scratch=<path>         Folder that slides which the table names by a URI (s3://, https://, gs://, file://) are
                           fetched to, one by one, and removed from. Left out: the system's for temporary files.
  --output_dir=<path>      Folder for the results: json/ (and qupath/ thumb/ mask/), summary.csv. Slides whose results
                           are there are skipped, those made with other options are reported; an interrupted run
                           goes on with the same command.
  --cache_path=<path>      Folder for finished blocks of slides in progress, 0.3 kB a nucleus. Left out: in output_dir.
  --input_mask_dir=<path>  Folder with tissue masks <slide>.png; not black is tissue. Left out: Otsu at 1.25x.
  --mask_dir=<path>        Another name of --input_mask_dir.
  --proc_mag=<n>           Magnification at which nuclei are outlined. Left out: the slide's own, at most 40. With
                           checkpoints that do not say what they were trained at, such as the original's, the network
                           reads at it too, and the default is 40.
  --mpp=<um>               Micrometres per pixel of the slides at level 0, where the files do not say it or are wrong.
  --mag=<n>                Or their objective power, instead of --mpp.
  --ambiguous_size=<px>    Margin that a block sees around its core. [default: 128]
  --chunk_shape=<px>       Largest side of a region that is read at once. [default: 10000]
  --tile_shape=<px>        Side of the blocks that are post-processed at once. [default: 2048]
  --save_thumb             Write thumb/<slide>.png, the slide at 1.25x.
  --save_mask              Write mask/<slide>.png, the tissue at 1.25x.
  --save_qupath            Write qupath/<slide>.geojson too, in px of level 0.
  --save_type_probs        Add to the JSON the mean probability of every type for each nucleus (key `type_probs`).
  --pattern=<glob>         Which files of the folder are slides. [default: *]
  --recursive              Look into sub-folders too.
  --shard=<i/n>            Process every n-th slide of the sorted list, from the i-th on (counted from 0), and write
                           the lines of the summary to parts/: for array jobs. `run_infer.py merge` joins them. With -
                           the run reads i/n from standard input, line by line, and loads the network once.
  --cluster=<where>        Distribute the slides with Dask (requirements-cluster.txt): local (this machine), slurm
                           (jobs as Dask's jobqueue.yaml describes them) or tcp://host:port (a running scheduler).
                           Each worker has its own process, each slide a log in logs/.
  --nr_workers=<n>         Processes or jobs at once, each on a slide. Left out: one a GPU of --gpu.
  --upload=<uri>           Folder by URI (s3://bucket/folder) to which the results of each slide are moved when it is
                           done. Files that cannot be uploaded stay in output_dir, and so does summary.csv. No report.
  --stage=<stage>          predict: run only the network and keep its maps in maps/, about 10 bytes per px of tissue
                           that it reads; segment: find the nuclei in these maps, without a GPU. Both together find
                           what a run without --stage finds. The maps stay until you remove them.
"""

MERGE_TEXT = """Join the results of the shards of a cohort: their lines in parts/ become summary.csv.

Usage:
  run_infer.py merge --output_dir=<path> [options]

Options:
  -h --help              Show this text.
  --output_dir=<path>    Folder that the shards wrote to. Slides that failed or are missing are named (exit code 1).

Of the options of all commands, only --no_report changes what `merge` does.
"""

#  Options of the two commands, under the names that downstream code uses.
_RENAMED = {"window": "patch_input_shape", "mask_dir": "input_mask_dir"}
_KINDS = {"int": "a whole number", "float": "a number", "Path": "a path", "str": "a text", "bool": "yes or no"}
_MAKE = {"int": int, "float": float, "Path": Path, "str": str, "bool": bool}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options that runs on images and on slides share; the help texts explain each."""

    TEXT: ClassVar[str]
    NEEDED: ClassVar = (("input_dir",), ("output_dir",))  # of each group one

    input_dir: Path | None = None
    output_dir: Path
    batch_size: int
    nr_inference_workers: int
    nr_post_proc_workers: int
    patch_input_shape: int | None = None
    patch_output_shape: int | None = None
    mpp: float | None = None
    np_threshold: float | None = None
    edges: str | None = None
    min_prob: float | None = None
    ink: str | None = None
    tta: bool
    save_qupath: bool
    save_type_probs: bool
    overwrite: bool
    pattern: str
    recursive: bool

    @classmethod
    def from_dict(cls, run_args: Mapping[str, Any]):
        """Build from a plain dictionary, as downstream code passes it; what is left out has the help text's default.

        Text is turned into what the option takes; `None` and the empty text mean that it is left out.

        Raises:
            ValueError: an option is unknown, missing, of a wrong kind or out of range.
        """
        known = {f.name: f.type.split(" | ")[0] for f in fields(cls)}
        unknown = sorted(set(run_args) - set(known))
        if unknown:
            raise ValueError(f"unknown run options {unknown}; known are {sorted(known)}")
        missing = [" or ".join(names) for names in cls.NEEDED if not any(map(run_args.get, names))]
        if missing:
            raise ValueError(f"run options {missing} are missing")
        given = {name: value for name, value in run_args.items() if value is not None and value != ""}
        values = {**_defaults(cls.TEXT + COMMON_TEXT, known), **given}
        return cls(**{name: _typed(name, value, known[name]) for name, value in values.items()})

    @classmethod
    def from_args(cls, args: Mapping[str, Any]):
        """Build from what docopt returns for the texts of the command and of the common options; see `from_dict`."""
        if args.get("--input_mask_dir") and args.get("--mask_dir"):
            raise ValueError("--mask_dir is another name of --input_mask_dir; give one of them")
        named = {
            _RENAMED.get(name := option.lstrip("-"), name): value for option, value in args.items() if value is not None
        }
        return cls.from_dict({field.name: named.get(field.name) for field in fields(cls)})

    def __post_init__(self):
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, Path) and (reason := unusable_name(value.absolute())):
                raise ValueError(f"--{option.name}={printable(value)}: {reason}")
        self._at_least("batch_size", 1)
        self._at_least("nr_inference_workers", 0)
        self._at_least("nr_post_proc_workers", 0)
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            raise ValueError(f"--mpp must be a positive number of micrometres per pixel, got {self.mpp}")
        from models.hovernet.post_proc import check_value  # OpenCV; --help must not wait for it

        for name in ("np_threshold", "edges", "min_prob", "ink"):
            if (value := getattr(self, name)) is not None:
                check_value(name, value, f"--{name}")

    def _at_least(self, name: str, least: int, unit: str = "") -> None:
        if getattr(self, name) < least:
            raise ValueError(f"--{name} must be {least}{unit} or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TileOptions(RunOptions):
    """Options of `run_infer.py tile`."""

    TEXT: ClassVar[str] = TILE_TEXT

    mem_usage: float
    draw_dot: bool
    save_raw_map: bool
    line_thickness: int

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mem_usage < 1:
            raise ValueError(f"--mem_usage is a share of the free memory between 0 and 1, got {self.mem_usage}")
        self._at_least("line_thickness", 1, " px")


@dataclass(frozen=True, kw_only=True)
class WsiOptions(RunOptions):
    """Options of `run_infer.py wsi`; `mpp` and `mag` are of level 0, where the file has none or a wrong one."""

    TEXT: ClassVar[str] = WSI_TEXT
    NEEDED: ClassVar = (("input_dir", "slides"), ("output_dir",))

    slides: Path | None = None
    scratch: Path | None = None
    shard: str | None = None
    stage: str | None = None
    upload: str | None = None
    cache_path: Path | None = None
    input_mask_dir: Path | None = None
    proc_mag: float | None = None
    mag: float | None = None
    ambiguous_size: int
    chunk_shape: int
    tile_shape: int
    save_thumb: bool
    save_mask: bool

    def __post_init__(self):
        super().__post_init__()
        for name in ("proc_mag", "mag"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be a positive magnification, got {getattr(self, name)}")
        for name, least in (("chunk_shape", 1), ("tile_shape", 1), ("ambiguous_size", 0)):
            self._at_least(name, least, " px")
        if self.upload and "://" not in self.upload:
            raise ValueError(f"--upload takes a URI as s3://bucket/folder, got `{self.upload}`")
        if self.stage not in (None, "predict", "segment"):
            raise ValueError(f"--stage is predict or segment, got `{self.stage}`")


def _defaults(text: str, known: Mapping[str, str]) -> dict[str, Any]:
    """Return the defaults of a help text, for the options that a class knows."""
    values = {name.lstrip("-"): option.value for name, option in option_names(text).items()}
    return {name: value for name, value in values.items() if name in known and value is not None}


def _typed(name: str, value: Any, kind: str) -> Any:
    """Return a value as what its option takes."""
    try:
        if isinstance(value, bool) != (kind == "bool") or (kind == "int" and isinstance(value, float) and value % 1):
            raise ValueError
        return _MAKE[kind](value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"--{name} takes {_KINDS[kind]}, got `{value}`") from error
