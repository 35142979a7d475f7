#!/usr/bin/env bash
# All measurements on a CUDA GPU in one command of at most 12 minutes; it needs no network and no data.
#
# Copy the checkout to the GPU machine, set OUT, run benchmarks/gpu.sh: it writes gpu.md, gpu.json and gpu.log to $OUT.
# The machine needs python3 with PyTorch for CUDA, NumPy, SciPy, OpenCV, scikit-image, tifffile, Pillow, six, imageio,
# tqdm, TensorBoard and safetensors. All else that the runs need comes from wheels in .whl/, which git ignores. Download
# them before (4 MB; this is for Python 3.12 on the GPU machine):
#   pip download -d .whl --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#       --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
#       --platform manylinux1_x86_64 \
#       $(grep -E '^(docopt-ng|defusedxml|imgaug|openslide-bin|openslide-python|orjson)==' requirements.txt)
# If commands may take 10 minutes:      OUT=... benchmarks/gpu.sh --minutes=9
# A test on a CPU, tiny, in 3 minutes:  OUT=... benchmarks/gpu.sh --rehearse
# TRAIN_COMMAND, or without it benchmarks/gpu_train.sh, gets the rest of the time. Copy the folders .gpu/ and .whl/ too.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 OUT="${OUT:-logs/gpu}"
missing() { # whether a package is missing; imports none
    ! python3 -c "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))" "$@"
}
if missing defusedxml docopt imgaug openslide orjson; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
python3 benchmarks/gpu.py "$@"
