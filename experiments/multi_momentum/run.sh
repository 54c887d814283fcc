#!/usr/bin/env bash
# The runs on MNIST of this experiment: FL_DATA_DIR=... bash experiments/multi_momentum/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses the rates (100)
#   OUT            folder for the runs (outputs/multi_momentum)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/multi_momentum} SEEDS=${SEEDS:-0,1,2}
COMMON=(data=mnist data.num_train=6000 data.num_test=2000 partition=pathological model=mlp "model.hidden=[32]"
  num_clients=20 strategy.clients=5 num_rounds=150 evaluate_every=5 fleet=uniform executor=serial
  client.local_epochs=null)
KEY=client.local_steps CASES=1,10
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

fedavg=(strategy=fedavg aggregator.weighted=false)
fedavgm=(strategy=fedavgm aggregator.weighted=false strategy.rule.beta=0.9 strategy.rule.eta=0.1)
fedvarp=(strategy=multi_momentum "strategy.rule.population=\${num_clients}" strategy.rule.beta=0)
multi_momentum=(strategy=multi_momentum "strategy.rule.population=\${num_clients}")
rates=client.rule.lr=0.01,0.03,0.1,0.3

tune fedavg "${fedavg[@]}" $rates
tune fedavgm "${fedavgm[@]}" $rates
CASES=1 tune fedavgm "${fedavgm[@]}" client.rule.lr=1
tune fedvarp "${fedvarp[@]}" $rates
tune multi_momentum "${multi_momentum[@]}" $rates strategy.rule.beta=0.5,0.9,0.97,0.99

final fedavg "${fedavg[@]}"
final fedavgm "${fedavgm[@]}"
final fedvarp "${fedvarp[@]}"
final multi_momentum "${multi_momentum[@]}"
