#!/usr/bin/env bash
# Every pruning learner of PocketFlow on a ResNet-20: half of the MACs for those that cut channels,
# three quarters of the weights zero for the one that does not. One run per learner.
#
#   experiments/recipes/pocketflow_pruning.sh DATA_FOLDER WEIGHTS [OUT] [OPTION ...]
#
#   PocketFlow                   here
#   channel                      --learner channels --criterion lasso
#   chn-pruned-gpu               --learner group-lasso
#   chn-pruned-rmt               --learner remastered
#   dis-chn-pruned               --learner discrimination
#   weight-sparse                --learner sparse
#   --cp_list_group              --finetune-groups
#   --ws_prune_ratio_prtl        --protocol: uniform, heurist and optimal are uniform, heuristic and
#                                searched; global has no counterpart
#
# What differs, and why:
# - PocketFlow masks channels and leaves the network as large as it was. Here they are cut out.
# - Its agent searches for two of the five, and evaluates channels on training images; the others cut
#   all layers alike. Here any agent searches for any learner, on validation images.
# - Its group lasso takes 2,000 training steps per layer to select channels. Here it is solved on
#   Gram matrices that are measured once.
# - It trains sparse networks from random weights and stores them as dense ones. Here zeros grow in
#   the trained network, and model.packed leaves them out.
#
# The weights were adapted on rows 0-44,999 of the train file, so the validation split is its tail.
set -euo pipefail
command -v amc >/dev/null || PATH="$(cd "$(dirname "$0")" && pwd)/../../.venv/bin:$PATH" # made by `make`
data=$1 weights=$2 out=${3:-runs/pocketflow_pruning}
shift $(($# > 3 ? 3 : $#))

compress() {
    name=$1
    shift
    amc compress --model resnet20 --data "$data" --weights "$weights" --out "$out-$name" --resume \
        --validation-split tail --validation-size 5000 --agent ddpg --evaluations 200 --epochs 30 "$@"
}

compress channels --learner channels --criterion lasso --budget macs=0.5 "$@"
compress group-lasso --learner group-lasso --budget macs=0.5 "$@"
compress remastered --learner remastered --budget macs=0.5 "$@"
compress discrimination --learner discrimination --budget macs=0.5 "$@"
compress groups --learner channels --criterion lasso --finetune-groups 3 --budget macs=0.5 "$@"
for protocol in uniform heuristic global searched; do
    compress "sparse-$protocol" --learner sparse --protocol "$protocol" --budget density=0.25 "$@"
done
