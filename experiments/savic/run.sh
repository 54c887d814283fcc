#!/usr/bin/env bash
# All runs of this experiment: bash experiments/savic/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses rate and alpha (100,101,102)
#   OUT            folder for the runs (outputs/savic)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/savic} SEEDS=${SEEDS:-0,1,2} TUNING=${TUNING:-100,101,102}
COMMON=(+experiment=savic) KEY=client.local_steps CASES=1,8,32
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

local_sgd=(strategy=fedavg aggregator.weighted=false)

grid() { # scaling, local steps, rates, alphas
  CASES=$2 tune "$1" evaluate_every=10 strategy=savic "strategy.rule.scaling=$1" "client.rule.lr=$3" \
    "strategy.rule.alpha=$4"
}

tune local_sgd evaluate_every=10 "${local_sgd[@]}" client.rule.lr=0.01,0.03,0.1,0.3
for scaling in adam rmsprop; do
  grid $scaling 1 0.01,0.03,0.1 1e-3,0.01,0.1
  grid $scaling 8,32 0.003,0.01,0.03 1e-4,1e-3,0.01
done
grid oasis 1 0.03,0.1,0.3 0.01,0.1,1
grid oasis 8,32 0.01,0.03,0.1 1e-4,1e-3,0.01
# Past the edges, where the best point lay there.
grid adam 8,32 0.01 1e-5
grid rmsprop 8 0.01,0.03 1e-5
grid rmsprop 8 0.1 1e-4
grid rmsprop 32 0.01 1e-5
grid oasis 1 1 0.1

final local_sgd "${local_sgd[@]}"
for scaling in adam rmsprop oasis; do
  final $scaling strategy=savic strategy.rule.scaling=$scaling
done
