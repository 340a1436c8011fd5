#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 with half of its MACs and 12% of its bytes: channels and bits decided in one
# episode, three seeds; then fine-tuned with distillation, packed, exported and reported.
#
#   experiments/recipes/resnet20_joint.sh DATA_FOLDER WEIGHTS [OUT] [OPTION ...]
#
# Twelve percent of the bytes is half of the channels' 50% at 8 bits, or all of them at 4: the search
# says where which is better. The two-stage way, at equal episodes and the same budget, is
#
#   python -m amc_compress.benchmarks.learners.joint --help
#
# The weights were adapted on rows 0-44,999 of the train file, so the validation split is its tail.
set -euo pipefail
command -v amc >/dev/null || PATH="$(cd "$(dirname "$0")" && pwd)/../../.venv/bin:$PATH" # made by `make`
data=$1 weights=$2 out=${3:-runs/joint}
shift $(($# > 3 ? 3 : $#))

for seed in 0 1 2; do
    amc compress --model resnet20 --data "$data" --weights "$weights" --out "$out-$seed" --resume \
        --validation-split tail --validation-size 5000 --seed "$seed" \
        --learner joint --weight-bits 2-8 --activation-bits 8 --budget macs=0.5,bytes=0.12 \
        --agent ddpg --evaluations 200 --epochs 30 "$@"
done
python -m amc_compress.benchmarks.agents.compare_runs "$out"-[0-9]
