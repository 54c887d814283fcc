#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/fedspeed/run.sh
#
#   SEEDS, TUNING  seeds of the results (0,1,2), and of what chooses the rates (100)
#   OUT            folder for the runs (outputs/fedspeed)
#   FL             the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/fedspeed} SEEDS=${SEEDS:-0,1,2}
COMMON=(+experiment=fedspeed) KEY=partition.alpha CASES=0.1
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

tune fedavg strategy=fedavg aggregator.weighted=false client.rule.lr=0.03,0.1,0.3
tune fedadam strategy=fedadam client.rule.lr=0.03,0.1,0.3 strategy.rule.eta=0.003,0.01,0.03,0.1
tune scaffold strategy=scaffold client.rule.lr=0.03,0.1,0.3
tune feddyn strategy=feddyn client.rule.lr=0.03,0.1,0.3
tune fedcm strategy=fedavg_m client.rule.lr=0.003,0.01,0.03,0.1,0.3
tune fedspeed strategy=fedspeed client.rule.lr=0.03,0.1,0.3 client.rule.rho=0.1

final fedavg strategy=fedavg aggregator.weighted=false
for method in fedadam scaffold feddyn fedspeed; do
  final $method strategy=$method
done
final fedcm strategy=fedavg_m
