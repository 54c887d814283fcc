#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/optex/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses the rates (100)
#   OUT            folder for the runs (outputs/optex)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/optex} SEEDS=${SEEDS:-0,1,2}
COMMON=(data=mnist data.num_train=6000 data.num_test=2000 partition=iid model=mlp "model.hidden=[32]" num_clients=40
  num_rounds=40 fleet=uniform executor=serial client.local_epochs=null strategy=optex)
KEY=client.local_steps CASES=1
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

# A gradient is the mean of 8 clients, or of 32. OptEx has 32 in four cohorts.
one=(strategy.rule.num_models=1 strategy.clients=8)
large=(strategy.rule.num_models=1 strategy.clients=32)
four=(strategy.rule.num_models=4 strategy.clients=32)

tune one_model "${one[@]}" client.rule.lr=0.1,0.3,1
tune one_model_of_32 "${large[@]}" client.rule.lr=0.1,0.3,1
tune optex "${four[@]}" client.rule.lr=0.1,0.3,1 strategy.rule.length=1,3

final one_model "${one[@]}"
final one_model_of_32 "${large[@]}"
final optex "${four[@]}"
