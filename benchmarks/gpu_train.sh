#!/usr/bin/env bash
# The training that benchmarks/gpu.sh ends with: pretrained/he.py at half width, for SECONDS_LEFT seconds (480).
#
# Before, here: make the folder to carry, .gpu/ (about 20 MB), from the training images, and the wheels as gpu.sh says:
#   python benchmarks/gpu_train.py prepare --kumar=kumar/Train --consep=consep/Train --others=others
# There, the training alone, in eight minutes:  OUT=... benchmarks/gpu.sh --minutes=8 --steps=training
# On a CPU, tiny:                               OUT=... benchmarks/gpu_train.sh --rehearse
# hovernet_he_fast_w050_20x.tar and the log come to be in $OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 benchmarks/gpu_train.py train "$@"
