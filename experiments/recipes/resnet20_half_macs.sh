#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 at half of its MACs: four agents, three seeds, 200 episodes each; then the
# plans of the winner fine-tuned with distillation, exported and reported. docs/results.md holds
# what it gave.
#
#   experiments/recipes/resnet20_half_macs.sh CIFAR10_FOLDER WEIGHTS [OUT] [WINNER]
#
# The weights were adapted on rows 0-44,999 of the train file, so the validation split is its tail.
set -euo pipefail
command -v amc >/dev/null || PATH="$(cd "$(dirname "$0")" && pwd)/../../.venv/bin:$PATH" # made by `make`
data=$1 weights=$2 out=${3:-runs/r20} winner=${4:-}
options=(--model resnet20 --data "$data" --weights "$weights" --budget macs=0.5 --evaluations 200
    --validation-split tail --validation-size 5000)

for seed in 0 1 2; do
    for agent in uniform random local ddpg; do
        amc search "${options[@]}" --agent "$agent" --seed "$seed" --out "$out/$agent-$seed" --resume
    done
done
python -m amc_compress.benchmarks.agents.compare_runs "$out"/*-[0-9]

[ -n "$winner" ] || exit 0
for seed in 0 1 2; do
    amc compress "${options[@]}" --agent "$winner" --seed "$seed" --out "$out/$winner-$seed" --resume \
        --epochs 12 --learning-rate 0.05
done
python -m amc_compress.benchmarks.agents.compare_runs "$out/$winner"-[0-9]
