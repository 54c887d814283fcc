#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/momentum/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2,3,4), and of what chooses the rates (100)
#   OUT            folder for the runs (outputs/momentum)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/momentum}
COMMON=(+experiment=momentum) KEY=strategy.clients CASES=10,2
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

tune fedavg strategy=fedavg aggregator.weighted=false client.rule.lr=0.03,0.1,0.3
tune feddyn strategy=feddyn client.rule.lr=0.03,0.1,0.3
tune scaffold strategy=scaffold client.rule.lr=0.01,0.03,0.1,0.3
tune fedavg_m strategy=fedavg_m client.rule.lr=0.03,0.1,0.3 strategy.rule.beta=0.1,0.3
CASES=10 tune fedavg_m strategy=fedavg_m client.rule.lr=0.3 strategy.rule.beta=0.6
CASES=10 tune fedavg_m strategy=fedavg_m client.rule.lr=1 strategy.rule.beta=0.3,0.6
tune scaffold_m strategy=scaffold_m client.rule.lr=0.03,0.1,0.3 strategy.rule.beta=0.1,0.3
tune scaffold_m strategy=scaffold_m client.rule.lr=0.01,1 strategy.rule.beta=0.1

final fedavg strategy=fedavg aggregator.weighted=false
for strategy in feddyn scaffold fedavg_m scaffold_m; do
  final $strategy strategy=$strategy
done
