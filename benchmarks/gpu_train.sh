#!/usr/bin/env bash
# The training at the end of benchmarks/gpu.sh: pretrained/he_30x_long.py at half width, for SECONDS_LEFT seconds (480).
#
# First, on your machine: make the folder to copy, .gpu/ (34 MB), and the wheels (see gpu.sh):
#   python benchmarks/gpu_train.py prepare --kumar=kumar/Train --consep=consep/Train --others=others
# On the GPU machine, only the training, in eight minutes:  OUT=... benchmarks/gpu.sh --minutes=8 --steps=training
# A test on a CPU, tiny:                                    OUT=... benchmarks/gpu_train.sh --rehearse
# It writes hovernet_he_fast_w050_30x.tar and the log to $OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 benchmarks/gpu_train.py train "$@"
