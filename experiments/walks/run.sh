#!/usr/bin/env bash
# All 18 runs of this experiment: bash experiments/walks/run.sh
#
#   SEEDS    comma-separated (0,1,2)
#   RATE     of the nodes (0.1)
#   ROUNDS   of a run, of 16 steps each (40)
#   OUT      folder for the runs (outputs/walks)
#   FL       the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/walks} FL=${FL:-fl} SEEDS=${SEEDS:-0,1,2} RATE=${RATE:-0.1} ROUNDS=${ROUNDS:-40}
export OMP_NUM_THREADS=1

sweep() { # name, arguments: both graphs, every seed
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m data=digits partition=dirichlet partition.alpha=0.3 model=logistic num_clients=16 \
    topology=ring,complete client.batch_size=16 "client.rule.lr=$RATE" "num_rounds=$ROUNDS" \
    evaluate_every=2 fleet=uniform fleet.flops=1e6 fleet.latency_s=0.05 executor=serial "seed=$SEEDS" \
    target=null progress=false views=false checkpoint=off "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

sweep gossip strategy=dpsgd
sweep walks strategy=sa_srrw strategy.walkers=1,16 strategy.rule.alpha=0
