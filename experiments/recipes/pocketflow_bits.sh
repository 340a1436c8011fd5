#!/usr/bin/env bash
# PocketFlow's bit allocation (UniformQuantLearner with uql_enbl_rl_agent) on a ResNet-20: bits of the
# weights, layer by layer, "equivalent to 4 bits", found by DDPG.
#
#   experiments/recipes/pocketflow_bits.sh DATA_FOLDER WEIGHTS [OUT] [OPTION ...]
#
# With a codebook per layer, PocketFlow's non-uniform learner:
#
#   experiments/recipes/pocketflow_bits.sh DATA WEIGHTS runs/codebook --learner codebook
#
# As in PocketFlow: weights only, activations in float; 2 to 8 bits; the action is the number of bits
# ("absolute"), cut off where the remaining layers could no longer have 2 bits each; reward is the
# accuracy; 200 episodes.
#
# What differs, and why:
# - PocketFlow evaluates candidates on the test images, and takes the best. Here it is validation images;
#   the test images are touched once, at the end.
# - PocketFlow trains every candidate for 2,000 steps, four complete trainings in all. Here a candidate
#   is matched to the float network layer by layer, in less than a second; --finetune-steps 50 trains
#   it as well.
# - PocketFlow stores the bits (2 to 8) as actions of an actor that answers 0 to 6, so that its critic
#   learns about other actions than the actor takes. Here both mean the same.
# - PocketFlow leaves the first and the last layer in float and does not count them. Here they have 8
#   bits and count.
# - PocketFlow rescales the weights of a layer by their minimum and maximum, so that a single outlier
#   spreads the few levels; here every output channel has the range with the least squared error.
#   PocketFlow's own: --granularity tensor --weight-range minmax --affine-weights.
set -euo pipefail
command -v amc >/dev/null || PATH="$(cd "$(dirname "$0")" && pwd)/../../.venv/bin:$PATH" # made by `make`
data=$1 weights=$2 out=${3:-runs/pocketflow}
shift $(($# > 3 ? 3 : $#))

amc compress --model resnet20 --data "$data" --weights "$weights" --out "$out" --resume \
    --learner uniform --weight-bits 2-8 --activation-bits 16 --first-last-bits 8 \
    --budget mean_bits=4/32 --action absolute --reward accuracy --agent ddpg --evaluations 200 \
    --epochs 30 "$@"
