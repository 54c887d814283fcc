#!/usr/bin/env bash
# All 5 runs of this experiment: bash experiments/fedconv/run.sh
#
#   SEEDS   comma-separated (0)
#   ROUNDS  of a run (15)
#   OUT     folder for the runs (outputs/fedconv)
#   FL      the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/fedconv} FL=${FL:-fl} SEEDS=${SEEDS:-0} ROUNDS=${ROUNDS:-15}
export OMP_NUM_THREADS=1

sweep() { # name, arguments: every seed
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m data=digits partition.alpha=0.1 num_clients=10 "num_rounds=$ROUNDS" fleet=uniform executor=serial \
    evaluate_every=5 client.local_epochs=5 "seed=$SEEDS" target=null progress=false views=false \
    "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

sweep fedconv strategy=fedconv strategy.rule.filter_epochs=20
sweep public_only strategy=server_training strategy.rule.eta=0
sweep fedavg_public strategy=server_training
sweep heterofl strategy=heterofl 'strategy.sub_models.capacity.levels=[1,0.75,0.5625]'
sweep fedavg strategy=fedavg
