#!/usr/bin/env bash
# All 15 runs of this experiment: FL_DATA_DIR=... bash experiments/pfedme/run.sh
#
#   METHODS  of those below, space-separated (all)
#   SEEDS    comma-separated (0,1,2)
#   ROUNDS   of a run (100)
#   OUT      folder for the runs (outputs/pfedme)
#   FL       the command (fl)
#   PYTHON   that makes the data (python)
set -euo pipefail

OUT=${OUT:-outputs/pfedme} FL=${FL:-fl} PYTHON=${PYTHON:-python} SEEDS=${SEEDS:-0,1,2} ROUNDS=${ROUNDS:-100}
METHODS=${METHODS:-pm gm pm_plain gm_logistic fedavg}
export OMP_NUM_THREADS=1

moreau=(client=pfedme goal=personal personal.local=true)
r20=(client.local_steps=20 client.rule.inner_lr=0.1) # of the log of the personal model, and of the global one
r10=(client.local_steps=10 client.rule.inner_lr=0.09)
net=(model=mlp model.hidden=[100])
# strategy=fedavg weighs clients by their examples, as the authors' code does with pFedMe's.

declare -A choices=(
  [pm]="strategy=fedavg ${moreau[*]} ${r20[*]}"
  [gm]="strategy=fedavg ${moreau[*]} ${r10[*]} ${net[*]}"
  [pm_plain]="strategy=pfedme ${moreau[*]} ${r20[*]}"
  [gm_logistic]="strategy=fedavg ${moreau[*]} ${r10[*]}"
  [fedavg]="strategy=fedavg goal=personal client.local_epochs=null client.local_steps=20 client.rule.lr=0.02 personal.local=true"
)

mkdir -p "$OUT"
[ -f "$OUT/clients.npz" ] || $PYTHON "$(dirname "$0")/clients.py" "$OUT/clients.npz"
for method in $METHODS; do
  own=${choices[$method]}
  [[ $own == *model=* ]] || own+=" model=logistic"
  # FL and a method's choices are words.
  # shellcheck disable=SC2086
  $FL -m data=arrays "data.path=$(realpath "$OUT")/clients.npz" data.standardise=false partition=natural \
    num_clients=20 fleet=uniform strategy.fraction_train=0.25 strategy.min_train_nodes=5 \
    "num_rounds=$ROUNDS" executor=serial evaluate_every=50 personal.every=50 client.batch_size=20 "seed=$SEEDS" \
    target=null progress=false views=false "hydra.sweep.dir=$OUT/$method" $own
done
