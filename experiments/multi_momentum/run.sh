#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/multi_momentum/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses the rates (100)
#   OUT            folder for the runs (outputs/multi_momentum)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/multi_momentum} SEEDS=${SEEDS:-0,1,2}
COMMON=(data=mnist data.num_train=6000 data.num_test=2000 partition=pathological model=mlp "model.hidden=[32]"
  num_clients=50 strategy.clients=5 num_rounds=150 evaluate_every=5 fleet=uniform executor=serial
  client.local_epochs=null)
KEY=client.local_steps CASES=1
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

tune fedavg strategy=fedavg aggregator.weighted=false client.rule.lr=0.03,0.1,0.3
tune fedavgm strategy=fedavgm aggregator.weighted=false client.rule.lr=0.03,0.1,0.3 strategy.rule.eta=0.1
tune fedvarp strategy=multi_momentum strategy.rule.beta=0 client.rule.lr=0.03,0.1,0.3
tune multi_momentum strategy=multi_momentum client.rule.lr=0.03,0.1,0.3 strategy.rule.beta=0.5,0.9

final fedavg strategy=fedavg aggregator.weighted=false
final fedavgm strategy=fedavgm aggregator.weighted=false strategy.rule.eta=0.1
final fedvarp strategy=multi_momentum strategy.rule.beta=0
final multi_momentum strategy=multi_momentum
