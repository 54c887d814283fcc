#!/usr/bin/env bash
# All 45 runs of this experiment: FL_DATA_DIR=... bash experiments/fedhyper/run.sh
#
#   SEEDS   seeds, comma-separated (0,1,2)
#   ROUNDS  rounds of a run (30)
#   OUT     folder for the runs (outputs/fedhyper)
#   FL      the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/fedhyper} FL=${FL:-fl} SEEDS=${SEEDS:-0,1,2} ROUNDS=${ROUNDS:-30}
RATES=0.001,0.01,0.1
export OMP_NUM_THREADS=1

sweep() { # name, arguments: every initial rate, every seed
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m data=mnist data.num_train=6000 data.num_test=2000 partition.alpha=0.5 model=mlp "model.hidden=[32]" \
    num_clients=100 "num_rounds=$ROUNDS" fleet=uniform executor=serial \
    client.batch_size=20 client.local_epochs=5 "seed=$SEEDS" target.value=0.8 \
    progress=false views=false "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

sweep fedavg strategy=fedavg client.rule.lr=$RATES
sweep g strategy=fedhyper_g client.rule.lr=$RATES
sweep sl strategy=fedhyper_sl strategy.rule.lr=$RATES
sweep cl strategy=fedhyper_cl client.rule.lr=$RATES
sweep g_cl strategy=fedhyper_cl strategy.rule.gamma_a=3 client.rule.lr=$RATES
