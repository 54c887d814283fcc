#!/usr/bin/env bash
# All 36 runs of this experiment: FL_DATA_DIR=... bash experiments/dimat/run.sh
#
#   SEEDS    comma-separated (0,1,2)
#   NODES    how many there are, comma-separated (5,10,20)
#   EACH     images of a node, on average (250)
#   ROUNDS   of a run; two epochs each, after the first (6)
#   OUT      folder for the runs (outputs/dimat)
#   FL       the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/dimat} FL=${FL:-fl} SEEDS=${SEEDS:-0,1,2} NODES=${NODES:-5,10,20}
EACH=${EACH:-250} ROUNDS=${ROUNDS:-6}
export OMP_NUM_THREADS=1

sweep() { # name, arguments: every way, number of nodes and seed
  for n in ${NODES//,/ }; do
    # FL is a command with arguments, if need be.
    # shellcheck disable=SC2086
    $FL -m strategy=dimat strategy.rule.by=activations,weights,order strategy.rule.pretraining=10 \
      data=mnist "data.num_train=$((n * EACH))" data.num_test=2000 model=mlp 'model.hidden=[64,64]' \
      "num_clients=$n" "num_rounds=$((ROUNDS + 1))" client.local_epochs=2 client.batch_size=32 \
      client.rule.lr=0.1 strategy.evaluated_nodes=null fleet=uniform executor=serial "seed=$SEEDS" \
      target=null progress=false views=false checkpoint=off "hydra.sweep.dir=$OUT/$1/$n" "${@:2}"
  done
}

sweep ring topology=ring partition=iid
NODES=5 sweep complete topology=complete partition=iid
