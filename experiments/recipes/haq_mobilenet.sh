#!/usr/bin/env bash
# HAQ (Wang et al. 2019) on a MobileNet V2: bits of weights and of activations, layer by layer, under a
# budget on what the hardware pays, found by DDPG.
#
#   experiments/recipes/haq_mobilenet.sh DATA_FOLDER WEIGHTS [OUT] [OPTION ...]
#
# With the latencies of an accelerator instead of bit operations, as HAQ does (60% of 8 bits):
#
#   experiments/recipes/haq_mobilenet.sh DATA WEIGHTS runs/haq \
#       --cost-table accelerator.json --budget latency=0.6
#
# Such a table has a precision for every pair of bits, w2a2 to w8a8; docs/latency_tables.md says how
# to write one, or how to read HAQ's. What `amc latency-table` measures on a processor will not do:
# it has fp32 and int8 only, and all plans of 2 to 8 bits cost the same. Without an accelerator's
# table bound bops, as below, or bytes.
#
# As in HAQ's code: weights symmetric, one scale per tensor; two decisions per layer, weights first;
# 2 to 8 bits; first and last layer 8 bits; the action is the number of bits ("absolute"); reward
# 0.1 x (accuracy - accuracy of the float network); every candidate is trained before it is evaluated;
# 600 episodes.
#
# What differs, and why:
# - The budget. HAQ lets an episode end over it and then takes bits away from the last layer to the
#   first, one by one, while the agent remembers what it asked for. Here no action can break it, and
#   the agent learns from what was done. HAQ's 60% is of the 8-bit network; ratios here are of the
#   float one, so 0.6 x (8 x 8) / (32 x 32) = 0.0375 of the bit operations. Bit operations stand in
#   for HAQ's table, whose latencies are nearly proportional to weight bits x activation bits.
# - The evaluation. HAQ's "accuracy" is that of the training images during one epoch on 20,000 of them;
#   here it is that of validation images, after 20 steps. More: --finetune-steps 160.
# - The ranges. HAQ clips weights at their maximum, at less than 5 bits where the KL divergence is
#   least; here always the latter. Ranges of activations are learned while training, as in HAQ.
# - The state. HAQ shows the agent the layer and the last action; here it sees the budget as well.
set -euo pipefail
command -v amc >/dev/null || PATH="$(cd "$(dirname "$0")" && pwd)/../../.venv/bin:$PATH" # made by `make`
data=$1 weights=$2 out=${3:-runs/haq}
shift $(($# > 3 ? 3 : $#))

amc compress --model mobilenet_v2_fast --data "$data" --weights "$weights" --out "$out" --resume \
    --learner uniform --weight-bits 2-8 --activation-bits 2-8 --first-last-bits 8 \
    --granularity tensor --weight-range kl --activation-range minmax --learned-steps \
    --budget bops=0.0375 --action absolute --reward haq --agent ddpg --evaluations 600 \
    --finetune-steps 20 --n-validation 1000 --epochs 30 "$@"
