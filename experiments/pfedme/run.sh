#!/usr/bin/env bash
# All 21 runs of this experiment: FL_DATA_DIR=... bash experiments/pfedme/run.sh
#
#   SEEDS   seeds, comma-separated (0,1,2)
#   ROUNDS  rounds of a run (100)
#   OUT     folder for the runs (outputs/pfedme)
#   FL      the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/pfedme} FL=${FL:-fl} SEEDS=${SEEDS:-0,1,2} ROUNDS=${ROUNDS:-100}
export OMP_NUM_THREADS=1

sweep() { # name, arguments: every seed
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m data=mnist data.num_train=20000 partition=pathological \
    partition.class_assignment_mode=deterministic partition.held_out=0.25 model=logistic num_clients=20 \
    fleet=uniform strategy.fraction_train=0.25 strategy.min_train_nodes=5 "num_rounds=$ROUNDS" executor=serial \
    evaluate_every=50 personal.every=50 client.batch_size=20 "seed=$SEEDS" target=null progress=false \
    views=false "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

steps=(client.local_epochs=null client.local_steps=20)

sweep gm strategy=pfedme client.local_steps=10 client.rule.inner_lr=0.09 personal.local=true
sweep pm strategy=pfedme client.local_steps=20 client.rule.inner_lr=0.1 personal.local=true
sweep fedavg strategy=fedavg "${steps[@]}" client.rule.lr=0.02 personal.local=true
sweep fine_tuned strategy=fedavg "${steps[@]}" client.rule.lr=0.02 personal.fine_tune.steps=40
sweep per_fedavg strategy=per_fedavg client.local_steps=40 client.rule.alpha=0.03 client.rule.lr=0.003
sweep ditto strategy=ditto "${steps[@]}" client.rule.lr=0.02
sweep apfl strategy=apfl "${steps[@]}" client.rule.lr=0.02 client.correction.alpha_lr=0.01
