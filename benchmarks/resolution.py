"""Measure the cost of a pixel size: score the nuclei from the maps of a perfect network at that size.

No network takes part. The labels are scaled as by `extract_patches.py --scale`, their perfect maps are enlarged to the
images' own pixels as at inference, and post-processing finds the nuclei in these. No training at that pixel size can
recover what is lost here.

Usage:
  resolution.py [options] <folder>...
  resolution.py (-h | --help)

Each folder has Labels/ (.mat with inst_map).

Options:
  -h --help         Show this text.
  --mpp=<um>        um/px of the labels. [default: 0.25]
  --net_mpp=<list>  um/px that a network reads. [default: 0.25,0.3333,0.4,0.5]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from docopt import docopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    args = docopt(__doc__)
    mpp = float(args["--mpp"])
    print("| labels | um/px of the network | DQ | SQ | PQ |\n|---|---|---|---|---|")
    try:
        for folder in args["<folder>"]:
            for text in args["--net_mpp"].split(","):
                scores = " | ".join(f"{score:.3f}" for score in ceiling(Path(folder), mpp / float(text)))
                print(f"| {folder} | {text} | {scores} |", flush=True)
    except (ValueError, OSError) as error:
        print(f"resolution.py: {error}", file=sys.stderr)
        return 1
    return 0


def ceiling(folder: Path, scale: float) -> np.ndarray:
    """Return the means of DQ, SQ and PQ over the labels of a folder, for maps scaled by `scale`."""
    from dataset import get_dataset
    from metrics.stats_utils import get_fast_pq, remap_label
    from misc.files import list_files

    scores = []
    for path in list_files(folder / "Labels", "*.mat"):
        true = remap_label(get_dataset("mat").load_ann(path)[..., 0])
        scores.append(get_fast_pq(true, remap_label(found_again(true, scale)))[0])
    return np.mean(scores, axis=0)


def found_again(label: np.ndarray, scale: float) -> np.ndarray:
    """Return the instances that post-processing finds in perfect maps.

    Args:
        label: (H, W) instance ids.
        scale: factor of the maps' size.

    Returns:
        (H, W) int32 instance ids.
    """
    from dataloader.patch_files import stack
    from infer.grid import Planes
    from infer.segment import segment
    from models.hovernet.targets import gen_targets

    small = stack(np.zeros((*label.shape, 3), np.uint8), label[..., None], scale)[..., 3].astype(np.int32)
    targets = gen_targets(small, small.shape)
    maps = np.concatenate([targets["np_map"][None], np.moveaxis(targets["hv_map"], -1, 0)]).astype(np.float32)
    whole = (0, 0, *label.shape)
    return segment(maps, None, Planes(small.shape, label.shape), whole, whole)[0]


if __name__ == "__main__":
    raise SystemExit(main())
