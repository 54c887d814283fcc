#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/momentum/run.sh [ALPHA ...]
#
#   ALPHA          of the labels' Dirichlet law, 0.1 or 0.5; without any, both
#   SEEDS, TUNING  seeds of the results (0,1,2,3,4; of 0.5 0,1,2), and of what chooses the rates (100)
#   OUT            folder for the runs (outputs/momentum)
#   FL             the command (fl)
set -euo pipefail

ROOT=${OUT:-outputs/momentum} GIVEN=${SEEDS:-}
KEY=strategy.clients CASES=10,2
# shellcheck source=experiments/tuned.sh
. "$(dirname "$0")/../tuned.sh"

fedavg=(strategy=fedavg aggregator.weighted=false)

strongly() { # Dirichlet(0.1)
  tune fedavg "${fedavg[@]}" client.rule.lr=0.03,0.1,0.3
  tune feddyn strategy=feddyn client.rule.lr=0.03,0.1,0.3
  tune scaffold strategy=scaffold client.rule.lr=0.01,0.03,0.1,0.3
  tune fedavg_m strategy=fedavg_m client.rule.lr=0.03,0.1,0.3 strategy.rule.beta=0.1,0.3
  CASES=10 tune fedavg_m strategy=fedavg_m client.rule.lr=0.3 strategy.rule.beta=0.6
  CASES=10 tune fedavg_m strategy=fedavg_m client.rule.lr=1 strategy.rule.beta=0.3,0.6
  CASES=10 tune fedavg_m strategy=fedavg_m client.rule.lr=0.3 strategy.rule.beta=0.8
  tune scaffold_m strategy=scaffold_m client.rule.lr=0.03,0.1,0.3 strategy.rule.beta=0.1,0.3
  tune scaffold_m strategy=scaffold_m client.rule.lr=0.01,1 strategy.rule.beta=0.1
  CASES=10 tune scaffold_m strategy=scaffold_m client.rule.lr=0.3 strategy.rule.beta=0.6
  CASES=2 tune scaffold_m strategy=scaffold_m client.rule.lr=0.03 strategy.rule.beta=0.6,0.8

  final fedavg "${fedavg[@]}"
  for strategy in feddyn scaffold fedavg_m scaffold_m; do
    final $strategy strategy=$strategy
  done
}

mildly() { # Dirichlet(0.5), with variance reduction
  local rates=client.rule.lr=0.03,0.1,0.3 beta=strategy.rule.beta=0.3
  local reduced=client.correction.variance_reduction=true
  tune fedavg "${fedavg[@]}" $rates
  final fedavg "${fedavg[@]}"
  for strategy in feddyn scaffold; do
    tune $strategy strategy=$strategy $rates
    final $strategy strategy=$strategy
  done
  for strategy in fedavg_m scaffold_m; do
    tune $strategy strategy=$strategy $beta $rates
  done
  tune fedavg_m strategy=fedavg_m $beta client.rule.lr=1
  CASES=10 tune scaffold_m strategy=scaffold_m $beta client.rule.lr=1
  for strategy in fedavg_m scaffold_m; do
    final $strategy strategy=$strategy $beta
  done
  for strategy in scaffold_m fedavg_m; do
    tune ${strategy}_vr strategy=$strategy $beta $reduced client.rule.lr=0.01,0.03,0.1,0.3
    final ${strategy}_vr strategy=$strategy $beta $reduced
  done
}

[ $# -gt 0 ] || set -- 0.1 0.5
for alpha in "$@"; do
  OUT=$ROOT/$alpha COMMON=(+experiment=momentum "partition.alpha=$alpha")
  case $alpha in
    0.1) SEEDS=${GIVEN:-0,1,2,3,4} strongly ;;
    0.5) SEEDS=${GIVEN:-0,1,2} mildly ;;
    *) echo "ALPHA is $alpha; it must be 0.1 or 0.5" >&2 && exit 2 ;;
  esac
done
