#!/usr/bin/env bash
# All 15 runs of this experiment: bash experiments/fedconv/run.sh
#
#   SEEDS   comma-separated (0,1,2)
#   ROUNDS  of a run (15)
#   OUT     folder for the runs (outputs/fedconv)
#   FL      the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/fedconv} FL=${FL:-fl} SEEDS=${SEEDS:-0,1,2} ROUNDS=${ROUNDS:-15}
export OMP_NUM_THREADS=1

sweep() { # name, arguments: every seed
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m data=digits partition.alpha=0.1 num_clients=10 "num_rounds=$ROUNDS" fleet=uniform executor=serial \
    evaluate_every=5 client.local_epochs=5 client.batch_size=32 "seed=$SEEDS" target=null progress=false \
    views=false checkpoint=off "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

adam=(client=adamw client.rule.lr=0.001 client.rule.weight_decay=0)
levels=(strategy/capacity=fixed "strategy.sub_models.capacity.levels=[1,1,0.75,0.75,0.75,0.75,0.5625,0.5625,0.5625,0.5625]")

sweep public_only strategy=server_training strategy.rule.eta=0 "${adam[@]}"
sweep fedavg strategy=fedavg "${adam[@]}"
sweep fedavg_public strategy=server_training "${adam[@]}"
sweep heterofl strategy=heterofl "${levels[@]}" "${adam[@]}"
sweep fedconv strategy=fedconv "${levels[@]}" "${adam[@]}"
