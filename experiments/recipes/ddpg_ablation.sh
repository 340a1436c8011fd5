#!/usr/bin/env bash
# What each part of DDPG's recipe is worth: one thing left out or changed at a time, on recorded tasks,
# 20 seeds. docs/agents/ddpg.md holds what it gave.
#
#   experiments/recipes/ddpg_ablation.sh [OUT] [TASK] [BUDGET_WINDOW] [SEEDS] [WORKERS] [EVALUATIONS] [PART]
#
# BUDGET_WINDOW is the task's budget with a lower bound. A PART, one-shot or layer-by-layer, does that
# one only.
set -euo pipefail
command -v amc >/dev/null || PATH="$(cd "$(dirname "$0")" && pwd)/../../.venv/bin:$PATH" # made by `make`
out=${1:-runs/ablation} task=${2:-digits-channels-recorded} window=${3:-macs=0.27:0.3}
seeds=${4:-20} workers=${5:-2} evaluations=${6:-60} part=${7:-}

ablation() { # FOLDER RECIPE CHANGE...
    [ -z "$part" ] || [ "$part" = "$1" ] || return 0
    local labels=(--agent "$2") folder=$1 recipe=$2
    for change in "${@:3}"; do
        labels+=(--agent "$recipe:$change")
    done
    amc compare --task "$task" "${labels[@]}" --reference "$recipe" --seeds "$seeds" \
        --evaluations "$evaluations" --workers "$workers" --out "$out/$folder"
}

# One action is the whole plan: an episode has one step, so credit and action mapping have nothing to do.
ablation one-shot ddpg-one-shot prior=none opening=false elite_share=0 screen=1 n_critics=1 \
    centre_rewards=false warmup=random final_sigma=0.15 updates_per_episode=1 \
    updates_per_episode=4 "env.budget=$window"
[ "$part" = layer-by-layer ] || amc compare --task "$task" --agent ddpg-sensitivity \
    --reference ddpg-one-shot --seeds "$seeds" --evaluations "$evaluations" --workers "$workers" \
    --out "$out/one-shot" # the warm start, in the same report

# One action per decision.
ablation layer-by-layer ddpg credit=broadcast credit=one_step centre_rewards=false \
    env.action=absolute env.action=interval warmup=random final_sigma=0.15 elite_share=0 \
    updates_per_episode=1 updates_per_episode=4 "env.budget=$window"
