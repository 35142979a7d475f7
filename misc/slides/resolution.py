"""The pixel size of a slide or image, and its source.

In this order: the option, the scanner, the file (OME-XML, TIFF tags, PNG `pHYs`, JPEG density), the objective power.
Values that no microscope has are ignored, with a note: 72, 96 and 300 dots per inch are 353, 265 and 85 um, zero px per
cm are infinitely many.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MPP_TIMES_MAG = 10.0  # um: 40x is 0.25 um/px by convention
NOMINAL_MAGS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0)
NOMINAL_TOLERANCE = 0.15  # share: scanners' 40x lies between 0.22 and 0.275 um/px
CONTRADICTION = 2**0.5  # ratio of objective power to 10/mpp from which the power is ignored
PLAUSIBLE_UM = (0.02, 10.5)  # um/px of a slide's level 0; other values are dots per inch for printing
INCH_UM = 25400.0


def resolution_of(source, mpp: float | None = None, mag: float | None = None):
    """Decide on um/px and magnification of level 0 of a source, see `misc.slides.sources`; `mpp`, `mag` are options.

    Returns:
        ((2,) x, y um/px or `None`, magnification or `None`, source of the um/px, notes).
    """
    notes, found, said_by = [], source.mpp_xy, source.mpp_from
    if found is not None and not all(PLAUSIBLE_UM[0] <= value <= PLAUSIBLE_UM[1] for value in found):
        notes.append(f"{said_by} of {found[0]:.4g} um/px is not plausible for a slide and is ignored")
        found = None
    power = source.power if source.power and source.power > 0 else None
    if mpp is not None:
        if found is not None and not same_mpp(found[0], mpp):
            notes.append(f"{said_by} says {found[0]:.4g} um/px; --mpp={mpp:g} is used")
        found, said_by = (mpp, mpp), "--mpp"
    elif mag is not None and (found is None or _contradict(found[0], mag)):
        found, said_by = (MPP_TIMES_MAG / mag,) * 2, "--mag"
    elif found is None and power is not None:
        found, said_by = (MPP_TIMES_MAG / power,) * 2, "the objective power"
    if found is None:
        return None, mag, None, notes
    if mag is None and power is not None and _contradict(found[0], power):
        if mpp is None:
            notes.append(f"objective power {power:g} does not fit {found[0]:.4g} um/px; the um/px is used")
        power = None
    return np.array(found, np.float64), mag or power or _nominal_mag(found[0]), said_by, notes


def same_mpp(said: float, given: float) -> bool:
    """Tell whether two um/px are the same as far as a nominal value goes: 0.2527 and 0.25."""
    return abs(said / given - 1) <= NOMINAL_TOLERANCE


def say_overruled(said: Mapping[str, float | None], given: float) -> str:
    """Return a warning that `--mpp` (`given`) is used for images whose files say other um/px, or "" where none does."""
    others = {name: mpp for name, mpp in said.items() if mpp is not None and not same_mpp(mpp, given)}
    if not others:
        return ""
    name, mpp = next(iter(others.items()))
    return f"--mpp={given:g} overrules {len(others)} of {len(said)} images that say otherwise ({name}: {mpp:.4g} um/px)"


def say_guessed(silent: Mapping[str, str], nr_images: int, mpp: float) -> str:
    """Return a warning that images do not say their pixel size.

    Args:
        silent: names of those images, and the ignored value of each, or "".
        nr_images: how many there are in all.
        mpp: the um/px that is assumed for them, at which the network was trained.
    """
    name, reason = next(((name, reason) for name, reason in silent.items() if reason), (next(iter(silent)), ""))
    return (
        f"{len(silent)} of {nr_images} images do not say their pixel size ({name}{reason and ': ' + reason}): "
        f"assumed to be {mpp:g} um/px, at which the network was trained; if that is wrong, so are the nuclei: give "
        "--mpp=<um per px> (40x: 0.25, 20x: 0.5)"
    )


def _contradict(mpp: float, power: float) -> bool:
    ratio = mpp * power / MPP_TIMES_MAG
    return max(ratio, 1 / ratio) > CONTRADICTION


def _nominal_mag(mpp: float) -> float:
    """Return the nominal magnification of a resolution: 40 for 0.2527 um/px."""
    mag = MPP_TIMES_MAG / mpp
    nearest = min(NOMINAL_MAGS, key=lambda nominal: abs(np.log(nominal / mag)))
    return nearest if abs(nearest / mag - 1) <= NOMINAL_TOLERANCE else mag
