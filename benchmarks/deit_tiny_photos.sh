#!/usr/bin/env bash
# Accuracy, parity and speed of DeiT-T on labelled photographs, without data until validation.
#
#   benchmarks/deit_tiny_photos.sh CHECKPOINT PHOTOS OUTPUT [BITS...]
#
# CHECKPOINT: safetensors of timm's deit_tiny_patch16_224; PHOTOS: a folder with labels.csv or one
# folder a class; OUTPUT: where the runs are left. BITS: w8a8 and w4a4 if none is given.
set -euo pipefail
checkpoint=$1 photos=$2 output=$3
shift 3
for bits in "${@:-w8a8}" $([ $# -gt 0 ] || echo w4a4); do
  run="$output/$bits"
  mimiq-deploy calibrate deit_tiny_patch16_224 --checkpoint "$checkpoint" \
    --bits "$bits" --recipe quick --output "$run"
  mimiq-deploy export "$run" --target ort-cpu
  mimiq-deploy validate "$run" --engine ort-cpu --data "$photos"
  mimiq-deploy bench "$run" --engine ort-cpu --batch-size 1 --batch-size 8 --threads 1
  mimiq-deploy bench "$run" --engine ort-cpu --batch-size 1 --batch-size 8
done
