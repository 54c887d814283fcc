#!/usr/bin/env bash
# All runs of this experiment: bash experiments/fedfix/run.sh
#
#   SEEDS  seeds, comma-separated (0,1)
#   OUT    folder for the runs (outputs/fedfix)
#   FL     the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/fedfix} FL=${FL:-fl} SEEDS=${SEEDS:-0,1}
export OMP_NUM_THREADS=1

sweep() { # name, arguments: both fleets, every rate, every seed
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=fedfix fleet/slowdown@fleet.client_slowdown=constant,linear \
    client.rule.lr=0.003,0.01,0.03 \
    "seed=$SEEDS" progress=false "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

# All 20 clients take part in a round.
sweep fedavg strategy=fedavg strategy.fraction_train=1.0 strategy.min_train_nodes=20
sweep async strategy=async_fedavg strategy.rule.weights=unbiased,identical strategy.concurrency=null
sweep fedfix strategy=fedfix strategy.rule.interval_s=0.2,0.5,0.8
sweep fedbuff strategy=fedbuff strategy.concurrency=null strategy.rule.buffer_size=5 \
  strategy/staleness=constant
