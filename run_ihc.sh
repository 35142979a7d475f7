#!/usr/bin/env bash
# Scores the DAB of every image and slide in a folder: classes on the tissue, regions, hot spots, tables. Runs as it is on
# a fresh machine: it sets up .venv (once), makes a sample image and scores it. Edit the block below for your own.

# ------------------------------------------------------------------------------------------------ what to edit
INPUT_DIR=dataset/sample_ihc/imgs/        # images and slides; the sample is made here when the folder is not there
OUTPUT_DIR=dataset/sample_ihc/scores/     # results: scores.csv overlay/ density/ qupath/ sedeen/ regions/ ...
MARKER=ki67                               # ki67 | er | pr | generic: thresholds, hot spots and categories
STAIN=auto                                # auto | default | r,g,b:r,g,b
REGIONS=                                  # folder with outlines by slide: QuPath, Sedeen, ASAP, ImageScope
INCLUDE=                                  # classes of regions that are scored, for example Tumor
EXCLUDE=                                  # classes whose nuclei count nowhere, for example Necrosis
MPP=                                      # um/px; empty: what the files say
COMPARE=                                  # scores.csv of another run, or a table with slide and positive_percent
MODEL_PATH=                               # checkpoint; empty: the one that ships for DAB
GPU=0                                     # for example 0,1; runs on the CPU where there is no GPU
NR_POST_PROC_WORKERS=16
PATTERN='*'                               # which files of the folder
FLAGS=()                                  # for example --thresholds=0.1,0.3,0.5 --hotspot_shape=circle --top_k=3
OVERWRITE=no                              # yes: do again what is there
# -------------------------------------------------------------------------------------------------------------

set -euo pipefail
cd "$(dirname "$0")"
. .ci/setup.sh
setup_venv
SAMPLE_DIR=dataset/sample_ihc/imgs/
if [ "$INPUT_DIR" = "$SAMPLE_DIR" ] && [ ! -d "$SAMPLE_DIR" ]; then
    python -m misc.sample "$SAMPLE_DIR" ihc.png
fi
for option in REGIONS INCLUDE EXCLUDE MPP COMPARE MODEL_PATH; do
    if [ -n "${!option}" ]; then
        FLAGS+=("--$(echo "$option" | tr '[:upper:]' '[:lower:]')=${!option}")
    fi
done
if [ "$OVERWRITE" = yes ]; then
    FLAGS+=(--overwrite)
fi
exec python run_ihc.py \
    --input_dir="$INPUT_DIR" \
    --output_dir="$OUTPUT_DIR" \
    --marker="$MARKER" \
    --stain="$STAIN" \
    --gpu="$GPU" \
    --nr_post_proc_workers="$NR_POST_PROC_WORKERS" \
    --pattern="$PATTERN" \
    ${FLAGS[@]+"${FLAGS[@]}"}
