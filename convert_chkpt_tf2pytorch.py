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
  --half            Store the weights in half precision, half as large; they are loaded as float32.
  --meta=<file>     JSON object to add to what the checkpoint says of itself, e.g. {"mpp": 0.5, "scores": {...}}.
  --overwrite       Replace the file if it is there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from misc.cli import run_command
from misc.text import counted


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
    meta = checkpoint.meta | (read_meta(args["--meta"]) if args["--meta"] else {})
    weights = mean_weights([build_model(each).state_dict() for each in (checkpoint, *others)])
    if args["--half"]:
        weights = {name: v.half() if v.is_floating_point() else v for name, v in weights.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_weights(target, weights, meta)
    print(
        f"{target}: {checkpoint.family} -> {checkpoint.mode}, {counted(checkpoint.nr_types or 0, 'type')}, "
        f"width {checkpoint.width:g}, {len(checkpoint.state_dict)} tensors"
    )
    return 0


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
