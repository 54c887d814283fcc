#!/usr/bin/env bash
# All runs of this experiment: bash experiments/favas/run.sh
#
#   SEEDS  seeds, comma-separated (0,1)
#   OUT    folder for the runs (outputs/favas)
#   FL     the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/favas} FL=${FL:-fl} SEEDS=${SEEDS:-0,1}
export OMP_NUM_THREADS=1

sweep() { # name, arguments: every rate, every seed
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=favas client.rule.lr=0.03,0.1,0.3 "seed=$SEEDS" progress=false \
    "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

sweep fedavg strategy=fedavg strategy.fraction_train=0.2
sweep fedbuff strategy=fedbuff strategy.concurrency=null
# Waiting 4 and interaction 3: the interaction takes no time here.
# Two sweeps: where the strategy is swept, Hydra takes no arguments that only some of them have.
for strategy in favas quafl; do
  sweep "$strategy" "strategy=$strategy" strategy.contacted=20 strategy.waiting_s=7
done
