"""Convert a HoVer-Net checkpoint of another framework to the `.tar` of this repository.

Reads TensorFlow's .npz (the authors' first repository), and MONAI's, tiatoolbox's and DataParallel's files too. Of a
checkpoint of run_train.py it keeps what inference needs: the weights, and what they say of themselves.

Usage:
  convert_chkpt_tf2pytorch.py [options] --tf_path=<file> --pt_path=<file>
  convert_chkpt_tf2pytorch.py (-h | --help)

Options:
  -h --help         Show this text.
  --tf_path=<file>  Checkpoint to convert, for example hovernet_original_kumar_notype.npz.
  --pt_path=<file>  File to write, by custom named .tar.
  --average=<list>  More checkpoints, separated by commas: the mean of their weights and those of --tf_path is written.
                    This helps where several trainings went on from one checkpoint. All else comes from --tf_path.
  --coarse=<file>   Write two networks in one file: that of --tf_path, and this one for pixels 1.5 times as large. Both
                    read each image; the mean of their maps counts, and the types of this one. It takes 1.3 times the
                    time of one network.
  --half            Store the weights in half precision, half as large; they are loaded as float32.
  --meta=<file>     JSON object to add to what the checkpoint says of itself, e.g. {"mpp": 0.5, "scores": {...}}.
  --overwrite       Replace the file if it is there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from misc.cli import run_command
from misc.text import counted

if TYPE_CHECKING:  # the help must not wait for torch
    from models.hovernet.checkpoint import Checkpoint


def main(argv: list[str] | None = None) -> int:
    return run_command(__doc__, convert, argv)


def convert(args: dict) -> int:
    """Read the checkpoint, write it as ours, and say what it is."""
    from models.hovernet.checkpoint import build_model, load_checkpoint, save_weights
    from run_utils.averaging import mean_weights

    target = Path(args["--pt_path"])
    if target.exists() and not args["--overwrite"]:
        raise ValueError(f"{target} exists; name another file or add --overwrite")
    checkpoint = load_checkpoint(args["--tf_path"])
    others = [load_checkpoint(path) for path in (args["--average"] or "").split(",") if path]
    weights = mean_weights([build_model(each).state_dict() for each in (checkpoint, *others)])
    checkpoint = replace(checkpoint, state_dict=weights)
    if args["--coarse"]:
        checkpoint = with_coarse(checkpoint, load_checkpoint(args["--coarse"]))
    weights = checkpoint.state_dict
    meta = checkpoint.meta | (read_meta(args["--meta"]) if args["--meta"] else {})
    if args["--half"]:
        weights = {name: v.half() if v.is_floating_point() else v for name, v in weights.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_weights(target, weights, meta)
    print(
        f"{target}: {checkpoint.family} -> {checkpoint.mode}, {counted(checkpoint.nr_types or 0, 'type')}, "
        f"width {checkpoint.width:g}, {len(weights)} tensors"
    )
    return 0


def with_coarse(fine: Checkpoint, coarse: Checkpoint) -> Checkpoint:
    """Return two checkpoints as one, without the types of the fine network.

    Raises:
        ValueError: a network is not `fast`, or their pixel sizes do not fit.
    """
    from models.hovernet.checkpoint import build_model
    from models.hovernet.two_scales import MPP_RATIO, TwoScales

    for each in (fine, coarse):
        if each.mode != "fast":
            raise ValueError(f"{each.path}: --coarse joins two `fast` networks, and this is a `{each.mode}` one")
    sizes = [each.meta.get("mpp") for each in (fine, coarse)]
    if None not in sizes and not 0.99 < sizes[1] / sizes[0] / MPP_RATIO < 1.01:
        raise ValueError(
            f"{coarse.path} reads {sizes[1]} um/px, {fine.path} {sizes[0]}: it must be {MPP_RATIO} times as much"
        )
    untyped = {name: value for name, value in fine.state_dict.items() if not name.startswith("decoder.tp.")}
    net = TwoScales(build_model(replace(fine, state_dict=untyped)), build_model(coarse))
    meta = {name: value for name, value in fine.meta.items() if name not in ("types", "window", "scores")}
    meta |= {"mode": net.mode, "nr_types": net.nr_types}
    meta |= {"types": coarse.meta["types"]} if "types" in coarse.meta else {}
    return replace(fine, state_dict=net.state_dict(), mode=net.mode, nr_types=net.nr_types, meta=meta)


def read_meta(path: str) -> dict:
    """Read a JSON object.

    Raises:
        ValueError, FileNotFoundError: it is none, or there is no such file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object was expected, got a {type(content).__name__}")
    return content


if __name__ == "__main__":
    sys.exit(main())
