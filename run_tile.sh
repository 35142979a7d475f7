#!/usr/bin/env bash
# Segments the nuclei of every image in a folder. Runs as it is on a fresh machine: it sets up .venv (once), makes
# two sample images and segments them with the checkpoint in pretrained/. Edit the block below for your own.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh run_tile.sh

# ------------------------------------------------------------------------------------------------ what to edit
INPUT_DIR=dataset/sample_tiles/imgs/      # images; the sample is made here when the folder is not there
OUTPUT_DIR=dataset/sample_tiles/pred/     # results: json/ mat/ overlay/ qupath/
MODEL_PATH=pretrained/hovernet_he_fast_w025_30x.tar
MODEL_MODE=                               # original | fast; empty: read off the checkpoint
NR_TYPES=                                 # types with the background; empty: read off the checkpoint
TYPE_INFO_PATH=                           # names and colours, for example type_info.json
GPU=0                                     # for example 0,1; runs on the CPU where there is no GPU
BATCH_SIZE=                               # patches a GPU; empty: 128, fewer of larger windows
PRECISION=auto                            # auto | fp32 | bf16 | fp16 | tf32
WINDOW=                                   # larger is faster; empty: what the checkpoint recommends
MPP=                                      # um/px of the images; empty: the network reads them as they are
NR_INFERENCE_WORKERS=8
NR_POST_PROC_WORKERS=16
MEM_USAGE=0.2                             # share of the free memory for images under way
PATTERN='*'                               # which files are images
LINE_THICKNESS=2                          # px, in the overlay
FLAGS=(--save_qupath)                     # also: --draw_dot --save_raw_map --save_type_probs --recursive
OVERWRITE=no                              # yes: do again what is there (the sample always is)
# -------------------------------------------------------------------------------------------------------------

set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
. .ci/setup.sh
setup_venv
SAMPLE_DIR=dataset/sample_tiles/imgs/
if [ "$INPUT_DIR" = "$SAMPLE_DIR" ]; then
    OVERWRITE=yes
    if [ ! -d "$SAMPLE_DIR" ]; then
        python -m misc.sample "$SAMPLE_DIR" he.png ihc_haematoxylin.png
    fi
fi
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
    tile \
    --input_dir="$INPUT_DIR" \
    --output_dir="$OUTPUT_DIR" \
    --mpp="$MPP" \
    --mem_usage="$MEM_USAGE" \
    --pattern="$PATTERN" \
    --line_thickness="$LINE_THICKNESS" \
    ${FLAGS[@]+"${FLAGS[@]}"}
