#!/usr/bin/env bash
# Segments the nuclei of every whole slide in a folder. The same command goes on after an interruption, and two runs on
# one output folder share the slides. Edit the block below for your own.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh run_wsi.sh

# ------------------------------------------------------------------------------------------------ what to edit
INPUT_DIR=dataset/sample_wsis/wsi/        # slides; other files are left out
OUTPUT_DIR=dataset/sample_wsis/out/       # results: json/ qupath/ thumb/ mask/ summary.csv
MODEL_PATH=pretrained/hovernet_he_fast_w025_30x.tar
MODEL_MODE=                               # original | fast; empty: read off the checkpoint
NR_TYPES=                                 # types with the background; empty: read off the checkpoint
TYPE_INFO_PATH=                           # names and colours, for example type_info.json
GPU=0                                     # for example 0,1; runs on the CPU where there is no GPU
BATCH_SIZE=                               # patches a GPU; empty: 128, fewer of larger windows
PRECISION=auto                            # auto | fp32 | bf16 | fp16 | tf32
WINDOW=                                   # larger is faster; empty: what the checkpoint recommends
PROC_MAG=                                 # where nuclei are outlined; empty: the slides' own, at most 40
MPP=                                      # um/px of the slides at level 0, where the files do not say it
INPUT_MASK_DIR=                           # tissue masks <slide>.png; empty: Otsu's threshold
CACHE_PATH=                               # finished blocks of slides under way; empty: in OUTPUT_DIR
AMBIGUOUS_SIZE=128                        # px that a block sees beyond its core
CHUNK_SHAPE=10000                         # px, largest side of what is read at once
TILE_SHAPE=2048                           # px, side of the blocks that are post-processed at once
NR_INFERENCE_WORKERS=8
NR_POST_PROC_WORKERS=16
PATTERN='*'                               # which files are slides
FLAGS=(--save_thumb --save_mask --save_qupath)   # also: --save_type_probs --recursive
OVERWRITE=no                              # yes: do again what is there
# -------------------------------------------------------------------------------------------------------------

set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
. .ci/setup.sh
setup_venv
COMMON=()
if [ "$OVERWRITE" = yes ]; then
    COMMON+=(--overwrite)
fi
exec python run_infer.py \
    --gpu="$GPU" \
    --nr_types="$NR_TYPES" \
    --type_info_path="$TYPE_INFO_PATH" \
    --batch_size="$BATCH_SIZE" \
    --precision="$PRECISION" \
    --window="$WINDOW" \
    --model_mode="$MODEL_MODE" \
    --model_path="$MODEL_PATH" \
    --nr_inference_workers="$NR_INFERENCE_WORKERS" \
    --nr_post_proc_workers="$NR_POST_PROC_WORKERS" \
    ${COMMON[@]+"${COMMON[@]}"} \
    wsi \
    --input_dir="$INPUT_DIR" \
    --output_dir="$OUTPUT_DIR" \
    --proc_mag="$PROC_MAG" \
    --mpp="$MPP" \
    --input_mask_dir="$INPUT_MASK_DIR" \
    --cache_path="$CACHE_PATH" \
    --ambiguous_size="$AMBIGUOUS_SIZE" \
    --chunk_shape="$CHUNK_SHAPE" \
    --tile_shape="$TILE_SHAPE" \
    --pattern="$PATTERN" \
    ${FLAGS[@]+"${FLAGS[@]}"}
