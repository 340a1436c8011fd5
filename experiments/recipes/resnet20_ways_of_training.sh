#!/usr/bin/env bash
# ResNet-20 on CIFAR-10 at 30% of its MACs, two epochs of training in all, spent in different ways:
# after the cut; with feature matching; from a larger teacher; group by group; in two stages; with a
# penalty before the cut. docs/results.md holds what it gave.
#
#   experiments/recipes/resnet20_ways_of_training.sh CIFAR10_FOLDER WEIGHTS [OUT] [TEACHER_WEIGHTS] [WAY]
#
# TEACHER_WEIGHTS are those of a ResNet-56. A WAY does that one only.
set -euo pipefail
command -v amc >/dev/null || PATH="$(cd "$(dirname "$0")" && pwd)/../../.venv/bin:$PATH" # made by `make`
data=$1 weights=$2 out=${3:-runs/r20-ways} resnet56=${4:-} only=${5:-}
options=(--model resnet20 --data "$data" --weights "$weights" --budget macs=0.3 --criterion lasso
    --round-to 4 --agent local --evaluations 60 --n-validation 2000 --validation-split tail
    --validation-size 5000 --learning-rate 0.02 --resume)

way() {
    if [ -z "$only" ] || [ "$only" = "$1" ]; then
        amc compress "${options[@]}" --out "$out/$1" "${@:2}"
    fi
}

way after --epochs 2
way no-teacher --epochs 2 --teacher none
way features --epochs 2 --feature-matching 1000
[ -z "$resnet56" ] || way resnet56 --epochs 2 --teacher resnet56 --teacher-weights "$resnet56"
way groups --finetune-groups 2 --group-epochs 1 --epochs 1
way stages --progressive 2 --stage-epochs 1 --epochs 1
way growing --sparse-training growing --sparse-epochs 1 --epochs 1
way group-lasso --sparse-training group-lasso --sparse-epochs 1 --epochs 1
for run in "$out"/*; do
    python -c 'import json, sys; print(sys.argv[1], json.load(open(sys.argv[1] + "/summary.json"))["compressed"]["accuracy"])' "$run"
done
