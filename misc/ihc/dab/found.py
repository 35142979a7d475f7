"""DAB of the nuclei of one slide: read once, and kept on disk, so that other thresholds or regions need no pixel."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from misc.files import atomic_path
from misc.formats.nuclei_json import read_json, types_from_header
from misc.formats.slide_facts import slide_facts
from misc.ihc.dab.options import DabOptions
from misc.ihc.measure import Densities, measure
from misc.ihc.stain import StainModel
from misc.ihc.stain_estimate import estimate_stains, tissue_sample
from misc.nuclei import Nuclei
from misc.slides.image import SlideImage
from misc.type_info import TypeInfo

# Key of the file of densities that holds what they were measured with.
_MADE, _STAIN = "made", "stain"


@dataclass(frozen=True)
class FoundNuclei:
    """The nuclei of a slide.

    Attributes:
        nuclei: at level 0.
        types: names of their types, or `None`.
        mpp_xy: um per level-0 px, or `None`.
        notes: what a person should know about how they were read.
        made: what they are told apart by: bytes and time of the file, pixel size.
    """

    nuclei: Nuclei
    types: TypeInfo | None
    mpp_xy: tuple[float, float] | None
    notes: tuple[str, ...]
    made: dict


def load_nuclei(path: Path, image: SlideImage, options: DabOptions) -> FoundNuclei:
    """Read the nuclei of a slide, whole.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is broken, or of another slide.
    """
    nuclei, header = read_json(path)
    facts = slide_facts(path, header, image, mpp=options.mpp)
    mpp_xy, notes = facts.mpp_xy, list(facts.notes)
    if mpp_xy is None:
        notes.append("the pixel size is not known: no areas, no search for hot spots; give --mpp=<um>")
    elif image.mpp_xy is None and options.mpp is None:
        notes.append(
            f"the image does not say its pixel size: taken as {mpp_xy[0]:g} um, as its nuclei were found; if that is "
            "wrong, give --mpp=<um> (40x: 0.25, 20x: 0.5) and --overwrite"
        )
    if facts.scale != 1:
        nuclei = nuclei.scale(facts.scale, facts.scale)
    stat = path.stat()
    made = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "mpp": mpp_xy and list(mpp_xy)}
    return FoundNuclei(nuclei, types_from_header(header), mpp_xy, tuple(notes), made)


def measure_slide(
    slide: FoundNuclei,
    image: SlideImage,
    given: StainModel | None,
    path: Path,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[Densities, StainModel]:
    """Measure the nuclei of a slide, or take what an earlier run measured in the same way.

    Args:
        slide: the nuclei.
        image: their slide.
        given: the stains, or `None`: found on the slide.
        path: where the densities are kept, `.npz`.
        progress: called with the number of nuclei after each piece.

    Raises:
        ValueError: the slide is no bright-field image.
    """
    made = {**slide.made, "given": None if given is None else given.words()}
    if (kept := _kept(path, made)) is not None:
        return kept
    model = estimate_stains(tissue_sample(image), given)
    mpp = None if slide.mpp_xy is None else float(np.mean(slide.mpp_xy))
    found = measure(slide.nuclei, image.read, (image.height, image.width), model, mpp, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        columns = {field.name: getattr(found, field.name) for field in fields(Densities)}
        np.savez(temporary, **columns, **{_MADE: json.dumps(made), _STAIN: json.dumps(asdict(model))})
    return found, model


def _kept(path: Path, made: dict) -> tuple[Densities, StainModel] | None:
    """Return what is kept, unless there is nothing, or something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if json.loads(str(file[_MADE])) != made:
                return None
            stain = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(str(file[_STAIN])).items()}
            return Densities(**{field.name: file[field.name] for field in fields(Densities)}), StainModel(**stain)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
