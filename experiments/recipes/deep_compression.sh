#!/usr/bin/env bash
# Deep Compression (Han, Mao & Dally 2016) of a ResNet-20: densities and codebook bits of every layer
# searched together for a file of 5% of the bytes, then carried out in the paper's order: zeros grow
# while the network trains, what is left shares the entries of codebooks, the entries are trained,
# the file is coded by entropy.
#
#   experiments/recipes/deep_compression.sh DATA_FOLDER WEIGHTS [OUT] [OPTION ...]
#
# With channels as a third kind of decision, all made at once:
#
#   experiments/recipes/deep_compression.sh DATA WEIGHTS runs/three \
#       --learner joint --density --quantizer codebook --budget macs=0.7,bytes=0.05
#
# What differs from the paper, and why:
# - There densities and bits are set by hand, layer by layer. Here an agent searches both.
# - There the file is coded by Huffman and counted by formula. Here a standard entropy coder writes
#   it, and the size is that of the file on the disk.
#
# The weights were adapted on rows 0-44,999 of the train file, so the validation split is its tail.
set -euo pipefail
command -v amc >/dev/null || PATH="$(cd "$(dirname "$0")" && pwd)/../../.venv/bin:$PATH" # made by `make`
data=$1 weights=$2 out=${3:-runs/deep}
shift $(($# > 3 ? 3 : $#))

amc compress --model resnet20 --data "$data" --weights "$weights" --out "$out" --resume \
    --validation-split tail --validation-size 5000 --learner deep --weight-bits 2-8 \
    --budget bytes=0.05 --agent ddpg --evaluations 200 --epochs 30 "$@"
