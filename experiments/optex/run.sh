#!/usr/bin/env bash
# The runs on MNIST of this experiment: FL_DATA_DIR=... bash experiments/optex/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses rate and length (100)
#   OUT            folder for the runs (outputs/optex)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/optex} SEEDS=${SEEDS:-0,1,2}
COMMON=(data=mnist data.num_train=6000 data.num_test=2000 partition=iid model=mlp "model.hidden=[32]" num_clients=40
  num_rounds=60 fleet=uniform executor=serial client.local_epochs=null strategy=optex target.value=0.85)
KEY=client.local_steps CASES=1
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

# A gradient is the mean of 8 clients, or of 32. OptEx has 16 in two cohorts, or 32 in four.
rates=client.rule.lr=0.03,0.1,0.3,1 lengths=strategy.rule.length=0.3,1,3,10,30
sgd_of() { # clients
  echo strategy.rule.num_models=1 "strategy.clients=$1"
}
optex_of() { # models
  echo "strategy.rule.num_models=$1" "strategy.clients=$((8 * $1))"
}

for clients in 8 32; do
  # shellcheck disable=SC2046
  tune sgd_of_$clients $(sgd_of $clients) $rates
done
for models in 2 4; do
  # shellcheck disable=SC2046
  tune optex_$models $(optex_of $models) $rates $lengths
done

for clients in 8 32; do
  # shellcheck disable=SC2046
  final sgd_of_$clients $(sgd_of $clients)
done
for models in 2 4; do
  # shellcheck disable=SC2046
  final optex_$models $(optex_of $models)
done
