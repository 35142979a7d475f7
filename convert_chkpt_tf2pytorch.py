"""Convert a HoVer-Net checkpoint of another framework to the `.tar` of this repository.

Reads TensorFlow's .npz (the authors' first repository), and MONAI's, tiatoolbox's and DataParallel's files too.

Usage:
  convert_chkpt_tf2pytorch.py [--overwrite] --tf_path=<file> --pt_path=<file>
  convert_chkpt_tf2pytorch.py (-h | --help)

Options:
  -h --help         Show this text.
  --tf_path=<file>  Checkpoint to convert, for example hovernet_original_kumar_notype.npz.
  --pt_path=<file>  File to write, by custom named .tar.
  --overwrite       Replace the file if it is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docopt import docopt


def main() -> int:
    args = docopt(__doc__)
    from models.hovernet.checkpoint import build_model, load_checkpoint, save_weights

    target = Path(args["--pt_path"])
    try:
        if target.exists() and not args["--overwrite"]:
            raise ValueError(f"{target} exists; name another file or add --overwrite")
        checkpoint = load_checkpoint(args["--tf_path"])
        net = build_model(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        save_weights(target, net.state_dict(), checkpoint.meta)
    except (ValueError, OSError) as error:
        print(f"convert_chkpt_tf2pytorch.py: {error}", file=sys.stderr)
        return 1
    print(
        f"{target}: {checkpoint.family} -> {checkpoint.mode}, {checkpoint.nr_types or 0} types, "
        f"width {checkpoint.width:g}, {len(checkpoint.state_dict)} tensors"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
