"""Compare rules for positive nuclei on labelled images: of run_ihc.py, by type, by DAB density, and combinations.

Labels are paired with nuclei one to one within 12 px. The script prints, for each image, the index by the labels and by
each rule ("network in 0.03": within 0.03 of the threshold the network decides, else the density). Then, for all pairs
together: how many each rule classifies as labelled, false positives and negatives, and the F1 scores of both classes.

Last, how well nuclei are found, by folder of labels: F1 of the pairs; and, where touching nuclei are labelled as one
piece, F1 of labels that hold the centre of a nucleus (each counts once) and of nuclei whose centre lies in no label, of
all nuclei and of run_ihc.py's classes.

Usage:
  ihc_classes.py [options] --ihc_dir=<path> --label_dir=<path>

Options:
  -h --help             Show this text.
  --ihc_dir=<path>      Results of run_ihc.py. With a network without types, only the DAB density is a rule.
  --label_dir=<path>    Folders of label maps, separated by commas: .mat with inst_map, inst_centroid and inst_type of
                        images in that run.
  --positive_label=<n>  Their inst_type of positive nuclei. [default: 1]
  --bands=<list>        Half widths of the bands around the threshold in which the network decides. [default: 0.03,0.06]
  --from_od=<n>         Least DAB density above the ground of a positive nucleus. [default: 0.1]
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from docopt import docopt

ROOT = Path(__file__).resolve().parents[1]
RADIUS_PX = 12


def main() -> int:
    args = docopt(__doc__)
    sys.path[:0] = [str(ROOT)]
    from metrics.detection import detection_f1
    from misc.formats.labels import read_label

    bands, threshold = [float(text) for text in args["--bands"].split(",")], float(args["--from_od"])
    totals: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for path in sorted(path for folder in args["--label_dir"].split(",") for path in Path(folder).glob("*.mat")):
        xy, scored, by_network, density = load(Path(args["--ihc_dir"]), path.stem)
        label = read_label(path)
        drawn = label["inst_type"].ravel() == int(args["--positive_label"])
        nucleus, truth = pair(label["inst_centroid"], drawn, xy)
        rules = {"run_ihc.py": scored} | rules_of(by_network, density, threshold, bands)
        indices = [f"{name} {100 * positive.mean():.1f}" for name, positive in rules.items()]
        print(f"{path.stem}, % positive: labels {100 * drawn.mean():.1f}, {', '.join(indices)}")
        for name, positive in rules.items():
            said = positive[nucleus]
            counts = [len(truth), (said & truth).sum(), (said & ~truth).sum(), (~said & truth).sum()]
            totals[name] = totals.get(name, 0) + np.array(counts)
        set_name = path.parent.parent.name if path.parent.name == "Labels" else path.parent.name
        found[set_name] = found.get(set_name, 0) + count_found(label["inst_map"], drawn, xy, scored, len(nucleus))
    print(
        f"{'positive by':16} {'pairs':>6} {'as labelled':>12} {'false +':>8} {'false -':>8}  F1 positive  F1 negative"
    )
    for name, (pairs, right, over, under) in totals.items():
        agree, negative = 100 * (1 - (over + under) / pairs), pairs - right - over - under
        f1 = [2 * agreed / max(2 * agreed + over + under, 1) for agreed in (right, negative)]
        print(f"{name:16} {pairs:6} {agree:10.2f} % {over:8} {under:8} {f1[0]:12.3f} {f1[1]:12.3f}")
    print(f"{'found':16} labels nuclei  F1 of pairs  of labels  positive  negative")
    for name, counts in (found | {"all": sum(found.values())}).items():
        f1 = [detection_f1(row) for row in counts]
        hits, lone, missed = counts[0]
        print(f"{name:16} {hits + missed:6} {hits + lone:6} {f1[0]:12.3f} {f1[1]:10.3f} {f1[2]:9.3f} {f1[3]:9.3f}")
    return 0


def rules_of(
    by_network: np.ndarray | None, density: np.ndarray, threshold: float, bands: list[float]
) -> dict[str, np.ndarray]:
    """Return (N,) bool, positive nuclei, by the name of the rule; only the rule of the density without a network's."""
    by_density = density >= threshold
    if by_network is None:
        return {"DAB": by_density}
    rules = {"network": by_network, "DAB": by_density}
    for band in bands:
        rules[f"network in {band:g}"] = np.where(np.abs(density - threshold) < band, by_network, by_density)
    return rules | {"both": by_network & by_density, "either": by_network | by_density}


def load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Return the nuclei of an image that count: (N, 2) px, (N,) bool positive by run_ihc.py, by the network, (N,) DAB.

    The network's are `None` if it has no types; DAB is the density above the ground.
    """
    from misc.formats.nuclei_json import read_json, types_from_header
    from misc.ihc.measure import Densities
    from misc.ihc.scores import NEGATIVE, NOT_COUNTED
    from misc.type_info import positive_ids

    nuclei, header = read_json(folder / "segmentation" / "json" / f"{name}.json")
    with np.load(folder / "measured" / f"{name}.npz") as file:
        found = Densities(**{field.name: file[field.name] for field in dataclasses.fields(Densities)})
    types = types_from_header(header)
    positive = np.isin(nuclei.types, positive_ids(types)) if types else None
    scored, _ = read_json(folder / "json" / f"{name}.json")
    if not np.array_equal(scored.ids, nuclei.ids):
        raise ValueError(f"{name}: json/ and segmentation/ of {folder} have other nuclei; run run_ihc.py again")
    counts, density = scored.types > NOT_COUNTED, found.dab_median - found.ground()
    by_network = None if positive is None else positive[counts]
    return nuclei.centroids_xy[counts], scored.types[counts] > NEGATIVE, by_network, density[counts]


def pair(centroids: np.ndarray, drawn: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair nuclei with labels, whose positive ones are `drawn`; return (P,) indices of nuclei, (P,) bool of labels."""
    from metrics.stats_utils import pair_coordinates

    nucleus, label = pair_coordinates(xy, centroids, RADIUS_PX)[0].T
    return nucleus, drawn[label]


def count_found(
    inst_map: np.ndarray, drawn: np.ndarray, xy: np.ndarray, positive: np.ndarray, pairs: int
) -> np.ndarray:
    """Count what is found in an image.

    Returns:
        (4, 3) numbers of hits, nuclei without a label and labels without a nucleus: of the pairs; then of labels that
        hold a nucleus, of all, positive ones and negative ones.
    """
    labels = np.setdiff1d(inst_map, 0)
    height, width = inst_map.shape
    cols, rows = np.clip(np.rint(xy).astype(int), 0, (width - 1, height - 1)).T
    at = inst_map[rows, cols]
    counts = [(pairs, len(xy) - pairs, len(labels) - pairs)]
    for nuclei, wanted in ((positive | True, drawn | True), (positive, drawn), (~positive, ~drawn)):
        inside = np.isin(at[nuclei], labels[wanted])
        hits = len(np.unique(at[nuclei][inside]))
        counts.append((hits, np.count_nonzero(~inside), np.count_nonzero(wanted) - hits))
    return np.array(counts)


if __name__ == "__main__":
    sys.exit(main())
