"""Sample images for a first run, from scikit-image's own immunohistochemistry picture.

Colon glands with DAB in the epithelium and haematoxylin in the nuclei (512 x 512 px, about 0.5 um/px by the size
of the nuclei). A network trained on H&E does not know brown tissue: for it, eosin takes the place of DAB, or
haematoxylin is left alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from .files import atomic_path
from .slides.resolution import INCH_UM

# Estimated from the size of its nuclei; the picture's authors do not give it.
SAMPLE_MPP = 0.5
# Haematoxylin is weaker here than in H&E sections: its 99th percentile is 0.061 (scikit-image's HED units), in
# Kumar's 16 training images it is 0.059 to 0.212, in most of them between 0.1 and 0.2.
HAEMATOXYLIN_GAIN = 2.5
# Amount of eosin for each amount of DAB; more than this looks like no section.
EOSIN_FOR_DAB = 0.4
# Of the sample slide: grey value and width of the glass, how much smaller the second level is, and tiles in px.
GLASS, SLIDE_MARGIN_PX, SLIDE_DOWNSAMPLE, SLIDE_TILE = 244, 64, 4, (256, 256)
CENTIMETRE_UM = 10_000


def as_he(rgb: np.ndarray, eosin_for_dab: float = EOSIN_FOR_DAB) -> np.ndarray:
    """Return a haematoxylin-DAB image as it would look with eosin instead of DAB.

    Args:
        rgb: (H, W, 3) uint8.
        eosin_for_dab: amount of eosin for each amount of DAB; 0 leaves haematoxylin alone.

    Returns:
        (H, W, 3) uint8.
    """
    from skimage.color import hed2rgb, rgb2hed

    haematoxylin, _, dab = np.moveaxis(np.maximum(rgb2hed(rgb), 0), -1, 0)
    stains = np.stack([haematoxylin * HAEMATOXYLIN_GAIN, dab * eosin_for_dab, np.zeros_like(dab)], axis=-1)
    return np.rint(np.clip(hed2rgb(stains), 0, 1) * 255).astype(np.uint8)


def write_samples(folder: str | Path, names: Collection[str] = ()) -> list[Path]:
    """Write `ihc.png`, `he.png` and `ihc_haematoxylin.png`, or those of `names`, and return their paths."""
    from skimage.data import immunohistochemistry

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rgb = immunohistochemistry()
    images = {"ihc.png": rgb, "he.png": as_he(rgb), "ihc_haematoxylin.png": as_he(rgb, eosin_for_dab=0)}
    images = {name: image for name, image in images.items() if not names or name in names}
    for name, image in images.items():
        with atomic_path(folder / name) as temporary:
            Image.fromarray(image).save(temporary, "PNG", dpi=(INCH_UM / SAMPLE_MPP,) * 2)  # stores the pixel size
    return [folder / name for name in images]


def write_slide(path: str | Path, image: str | Path) -> None:
    """Write a small slide: an image of `SAMPLE_MPP` on glass, at two magnifications.

    Args:
        path: the file, a pyramidal TIFF.
        image: the tissue.
    """
    import tifffile

    rgb = np.asarray(Image.open(image).convert("RGB"))
    margin = ((SLIDE_MARGIN_PX, SLIDE_MARGIN_PX), (SLIDE_MARGIN_PX, SLIDE_MARGIN_PX), (0, 0))
    slide = np.pad(rgb, margin, constant_values=GLASS)
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary) as out:
        for factor in (1, SLIDE_DOWNSAMPLE):
            level = slide if factor == 1 else np.asarray(Image.fromarray(slide).reduce(factor))
            per_cm = (CENTIMETRE_UM / (SAMPLE_MPP * factor),) * 2
            kind = {"photometric": "rgb", "compression": "deflate", "subfiletype": int(factor > 1), "tile": SLIDE_TILE}
            out.write(level, resolution=per_cm, resolutionunit="CENTIMETER", **kind)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the sample images.")
    parser.add_argument("folder")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    for path in write_samples(given.folder, given.names):
        print(path)
