"""Measure what a checkpoint loses on slides that are out of focus or stained too dark.

It scores labelled images as they are, blurred, darker, and both; labels stay. PQ is the mean over the images. Training
images will do, to compare checkpoints that were trained on the same ones.

Usage:
  degraded.py --model_path=<file> [options] <folder>
  degraded.py (-h | --help)

<folder> has Images/ and Labels/ (.mat with inst_map).

Options:
  -h --help            Show this text.
  --model_path=<file>  Checkpoint.
  --sigma_px=<list>    Standard deviations of the blur, px of the images. [default: 2,3]
  --density=<n>        Factor of the optical density of dark images. [default: 1.6]
  --mpp=<um>           um/px of the images (that in their files is not read); they are resized to the um/px of the
                       checkpoint's training. Left out: they are read as they are.
  --precision=<p>      auto, fp32, bf16 or fp16. [default: auto]
  --original           Find nuclei in the network's maps as the original does, whatever the checkpoint recommends.
  --gpu=<ids>          GPUs; empty for the CPU. [default: 0]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from docopt import docopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    from misc.batch import run_script

    return run_script("degraded.py", lambda: measure(docopt(__doc__)))


def measure(args: dict) -> int:
    """Print a row for each way to degrade the images of a folder."""
    from benchmarks.post_proc import score_set
    from infer.tile import InferManager
    from models.hovernet.post_proc import PostProc

    manager = InferManager({"model_path": args["--model_path"]}, gpu=args["--gpu"], precision=args["--precision"])
    how = PostProc() if args["--original"] else PostProc.from_meta(manager.checkpoint.meta, "meta")
    options = {"mpp": float(args["--mpp"]) if args["--mpp"] else None}
    sigmas = [float(text) for text in args["--sigma_px"].split(",")]
    print("| images | PQ |\n|---|---|")
    for name, sigma, density in ways(sigmas, float(args["--density"])):
        with tempfile.TemporaryDirectory() as temporary:
            degrade(Path(args["<folder>"]), Path(temporary), sigma, density)
            pq = score_set(manager, Path(temporary), options, [how])[0, :, 0]
        print(f"| {name} | {pq.mean():.3f} |", flush=True)
    return 0


def ways(sigmas: list[float], density: float) -> Iterator[tuple[str, float, float]]:
    """Yield name, blur in px and factor of the density."""
    yield "as they are", 0, 1
    for sigma in sigmas:
        yield f"blurred, {sigma:g} px", sigma, 1
    yield f"{density:g} times as dense", 0, density
    yield f"{density:g} times as dense, blurred, {sigmas[0]:g} px", sigmas[0], density


def degrade(folder: Path, out: Path, sigma: float, density: float) -> None:
    """Write the images of a folder to out/Images/, changed; out/Labels is that of the folder."""
    import cv2
    import imageio.v3 as imageio

    from misc.files import full_stem, list_files
    from misc.slides.images import read_image

    (out / "Images").mkdir()
    (out / "Labels").symlink_to((folder / "Labels").resolve())
    for path in list_files(folder / "Images"):
        image = np.rint(255 * (read_image(path) / 255) ** density).astype(np.uint8)
        image = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE) if sigma else image
        imageio.imwrite(out / "Images" / f"{full_stem(path)}.png", image)


if __name__ == "__main__":
    sys.exit(main())
