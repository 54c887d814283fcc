#!/usr/bin/env bash
# All 48 runs of this experiment: FL_DATA_DIR=... bash experiments/fedamd/run.sh
#
#   SEEDS   seeds, comma-separated (0,1,2)
#   RATES   the clients' learning rates, comma-separated (0.01,0.03,0.1,0.3)
#   ROUNDS  rounds of a run (40)
#   OUT     folder for the runs (outputs/fedamd)
#   FL      the command (fl)
#
# Devices draw power while they compute and at no other time, so that joules count gradients.
set -euo pipefail

OUT=${OUT:-outputs/fedamd} FL=${FL:-fl} SEEDS=${SEEDS:-0,1,2} ROUNDS=${ROUNDS:-40}
RATES=${RATES:-0.01,0.03,0.1,0.3}
export OMP_NUM_THREADS=1

sweep() { # name, arguments: every rate, every seed
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m data=mnist data.num_train=6000 data.num_test=2000 partition=pathological model=mlp \
    "model.hidden=[32]" num_clients=50 strategy.fraction_train=0.2 "num_rounds=$ROUNDS" executor=serial \
    fleet=uniform fleet.idle_w=0 fleet.radio_w=0 client.batch_size=20 client.local_steps=10 \
    client.local_epochs=null "client.rule.lr=$RATES" "seed=$SEEDS" target.value=0.75 \
    progress=false views=false "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

sweep fedavg strategy=fedavg
sweep scaffold strategy=scaffold
sweep coins strategy=fedamd
sweep turns strategy=fedamd strategy.rule.every=2
