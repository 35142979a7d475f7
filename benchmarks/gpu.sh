#!/usr/bin/env bash
# Everything that a CUDA GPU should show, in one command of at most 12 minutes, without a network and without data.
#
# Copy the checkout to the GPU machine, set OUT, run benchmarks/gpu.sh: gpu.md, gpu.json and gpu.log come to be in $OUT.
# The machine needs python3 with PyTorch for CUDA, NumPy, SciPy, OpenCV, scikit-image, tifffile, Pillow, six, imageio,
# tqdm, TensorBoard and safetensors. What else requirements.txt names is taken from wheels in .whl/, which git ignores;
# fetch them before (4 MB; the version of the machine's Python here is 3.12):
#   pip download -d .whl --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#       --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
#       --platform manylinux1_x86_64 \
#       $(grep -E '^(docopt-ng|defusedxml|imgaug|openslide-bin|openslide-python|orjson)==' requirements.txt)
# Where commands have 10 minutes:  OUT=... benchmarks/gpu.sh --minutes=9
# On a CPU, tiny, in 3 minutes:    OUT=... benchmarks/gpu.sh --rehearse
# TRAIN_COMMAND, or benchmarks/gpu_train.sh where it exists, gets the time that is left; folders to carry: .gpu/, .whl/.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 OUT="${OUT:-logs/gpu}"
missing() { # whether a package is missing; without importing it
    ! python3 -c "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))" "$@"
}
if missing defusedxml docopt imgaug openslide orjson; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
python3 benchmarks/gpu.py "$@"
