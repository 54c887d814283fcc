#!/usr/bin/env bash
# All 18 runs of this experiment: bash experiments/fedast/run.sh
#
#   SEEDS    seeds (0,1,2)
#   METHODS  some of those named at the end (all)
#   JOBS     processes at a time (1)
#   OUT      folder for the runs (outputs/fedast)
#   FL       the command (fl)
#
# Needs FL_DATA_DIR with MNIST and CIFAR-10, or the Hugging Face hub.
set -euo pipefail

export SEEDS=${SEEDS:-0,1,2} OUT=${OUT:-outputs/fedast} FL=${FL:-fl}
export OMP_NUM_THREADS=1 # one core for each process

sweep() {
  local method=$1 arguments
  # An update weighs eta / b = 0.2 / 3 in FedAST and eta / first = 1 / 15 in Sync-ST.
  case $method in
    fedast*) arguments=(strategy=fedast strategy.rule.ratio=16 strategy.rule.eta=0.2
      strategy.patience=null) ;;
    sync*) arguments=(strategy=sync_st strategy.concurrency=75 evaluate_every=1) ;;
  esac
  case $method in
    fedast_dynamic) arguments+=(strategy.rule.allocation=dynamic
      "strategy.rule.client_lr={mnist: 0.1, cifar10: 0.05}") ;;
    *_first | *_first_in_turn) arguments+=(strategy.first=15) ;;
  esac
  case $method in
    *_in_turn) arguments+=(strategy.one_after_another=true) ;;
  esac
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=fedast "seed=$SEEDS" progress=false "hydra.sweep.dir=$OUT/$method" \
    "${arguments[@]}"
}
export -f sweep

# shellcheck disable=SC2086
printf '%s\n' ${METHODS:-fedast_static sync_first fedast_in_turn sync_first_in_turn sync_all fedast_dynamic} |
  xargs --max-procs="${JOBS:-1}" --max-lines=1 bash -c 'sweep "$@"' sweep
