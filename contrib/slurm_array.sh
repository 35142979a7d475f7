#!/usr/bin/env bash
# Segments a cohort as an array of SLURM jobs, one for each shard of the slides; the array counts from 0. Submit it with
#   sbatch --array=0-7 --gres=gpu:1 --cpus-per-task=8 --mem=32G contrib/slurm_array.sh COHORT OUTPUT_DIR MODEL [options of wsi]
# and, when it has ended, join the results: python run_infer.py merge --output_dir=OUTPUT_DIR
#SBATCH --job-name=hovernet
#SBATCH --output=hovernet-%A_%a.log
set -euo pipefail
cohort=$1 output_dir=$2 model=$3
shift 3

# a job runs a copy of this script, so the toolkit is where it was submitted from, or where HOVERNET says
cd "${HOVERNET:-${SLURM_SUBMIT_DIR:?submit this with sbatch}}"
if [ -d "$cohort" ]; then what=--input_dir; else what=--slides; fi
gpu=${CUDA_VISIBLE_DEVICES:+0} # SLURM numbers each job's own GPUs from 0; without one it runs on the CPU
exec "${PYTHON:-python}" run_infer.py --gpu="$gpu" --model_path="$model" wsi \
    "$what=$cohort" --output_dir="$output_dir" --shard="$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
