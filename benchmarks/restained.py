"""Make labelled haematoxylin-DAB images from labelled H&E images, to score networks for DAB.

Usage:
  restained.py [--mpp=<um>] [--seed=<n>] <folder> <out>
  restained.py (-h | --help)

<folder> has Images/ and Labels/ (.mat with inst_map). <out> gets the same, re-stained as for training
(`dataloader/restain.py`): each image has its own random numbers, and labels have the types 1 negative and 2 positive
(`type_map`, `inst_type`).

Options:
  -h --help   Show this text.
  --mpp=<um>  um/px of the images. [default: 0.25]
  --seed=<n>  Seed of the re-staining. [default: 0]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from docopt import docopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NR_CLASSES = 2


def main() -> int:
    from misc.batch import run_script

    return run_script("restained.py", lambda: make(docopt(__doc__)))


def make(args: dict) -> int:
    """Re-stain the images of a folder."""
    import imageio.v3 as imageio
    import scipy

    from dataloader.extraction import pair_files
    from dataloader.restain import restain
    from dataset import get_dataset

    source, out, dataset = Path(args["<folder>"]), Path(args["<out>"]), get_dataset("mat")
    pairs = pair_files("test", ("", source / "Images"), (".mat", source / "Labels")).pairs
    for part in ("Images", "Labels"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for number, (stem, (image, label)) in enumerate(sorted(pairs.items())):
        instances = dataset.load_ann(label)[..., 0]
        rng = np.random.default_rng((int(args["--seed"]), number))
        restained, classes = restain(dataset.load_img(image), instances, rng, NR_CLASSES, float(args["--mpp"]))
        imageio.imwrite(out / "Images" / f"{stem}.png", restained)
        ids = np.setdiff1d(instances, 0)
        centres = scipy.ndimage.center_of_mass(instances > 0, instances, ids)
        content = {"inst_map": instances, "type_map": classes[instances].astype(np.int32)}
        content |= {"inst_type": classes[ids, None].astype(np.int32)}
        content |= {"inst_centroid": np.reshape(centres, (-1, 2))[:, ::-1]}  # x, y
        scipy.io.savemat(out / "Labels" / f"{stem}.mat", content, do_compression=True)
    print(f"{len(pairs)} images in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
