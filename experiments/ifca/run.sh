#!/usr/bin/env bash
# All 6 runs of this experiment: FL_DATA_DIR=... bash experiments/ifca/run.sh
#
#   SEEDS    comma-separated (0,1)
#   CLIENTS  of 100 images each (32); 2400 are the paper's
#   ROUNDS   of a run (20)
#   OUT      folder for the runs (outputs/ifca)
#   FL       the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/ifca} FL=${FL:-fl} SEEDS=${SEEDS:-0,1} CLIENTS=${CLIENTS:-32} ROUNDS=${ROUNDS:-20}
export OMP_NUM_THREADS=1

sweep() { # name, arguments: every seed
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m data=rotated_mnist partition=clusters partition.partition_size=100 partition.test_size=100 \
    "data.num_train=$((CLIENTS * 25))" data.num_test=1000 "num_clients=$CLIENTS" "num_rounds=$ROUNDS" \
    model=mlp 'model.hidden=[200]' fleet=uniform executor=serial evaluate_every=1000 personal.every=5 \
    client.local_epochs=null client.local_steps=10 client.batch_size=null client.rule.lr=0.1 \
    "seed=$SEEDS" target=null progress=false views=false checkpoint=off "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

all=(strategy.fraction_train=1.0 strategy.min_train_nodes=1)

sweep ifca strategy=ifca "${all[@]}"
sweep fedavg strategy=fedavg "${all[@]}"
sweep local strategy=local
