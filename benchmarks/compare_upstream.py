"""Compare this toolkit with the original repository: the same inputs, in one process, on this machine.

The two run alternately (theirs, ours, theirs, ours). The table shows the median of each, the ratio, and whether the
results are the same.

Usage:
  compare_upstream.py --upstream=<dir> [options]

Options:
  -h --help         Show this text.
  --upstream=<dir>  Unmodified checkout of github.com/vqdang/hover_net.
  --device=<d>      cpu or cuda. [default: cpu]
  --threads=<n>     Threads of post-processing, metrics and targets; the network uses all. [default: 1]
  --runs=<n>        Runs of each; at most 3 of forward, metrics, tile and step. [default: 5]
  --slide=<file>    A slide for the part `slide`, which measures memory and cache too.
  --mag=<n>         Magnification to read it at. [default: 20]
  --only=<parts>    Which of forward, process, metrics, tile, slide, targets, loader and step, comma-separated.
                    [default: forward,process,metrics,tile,targets,loader,step]
"""

from __future__ import annotations

import sys
from pathlib import Path

from docopt import docopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    args = docopt(__doc__)
    import cv2
    import torch

    from benchmarks import pairs, pairs_slide, pairs_training
    from benchmarks.upstream import Upstream

    cv2.setNumThreads(int(args["--threads"]))
    upstream = Upstream(args["--upstream"], args["--device"])
    runs = int(args["--runs"])
    name = torch.cuda.get_device_name() if args["--device"] == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__} on {name}\n")
    print("| | theirs | ours | ratio | same? |\n|---|---|---|---|---|")
    parts = {
        "forward": lambda: pairs.forward(upstream, args["--device"], min(runs, 3)),
        "process": lambda: pairs.process(upstream, runs),
        "metrics": lambda: pairs.metrics(upstream, min(runs, 3)),
        "tile": lambda: pairs.tile(upstream, args["--device"], min(runs, 3)),
        "slide": lambda: pairs_slide.slide(upstream, Path(args["--slide"]), args["--device"], float(args["--mag"])),
        "targets": lambda: pairs_training.targets(upstream, runs),
        "loader": lambda: pairs_training.loader(upstream, runs),
        "step": lambda: pairs_training.step(upstream, args["--device"], min(runs, 3)),
    }
    all_same = True
    chosen = args["--only"].split(",") + (["slide"] if args["--slide"] and "slide" not in args["--only"] else [])
    for part in chosen:
        if part not in parts:
            print(f"compare_upstream.py: --only takes {', '.join(parts)}; got `{part}`", file=sys.stderr)
            return 2
        if part == "slide" and not args["--slide"]:
            print("compare_upstream.py: the part `slide` needs --slide=<file>", file=sys.stderr)
            return 2
        for pair in parts[part]():
            print(pair.row(), flush=True)
            all_same &= pair.same
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
