#!/usr/bin/env bash
# All runs of this experiment, on MNIST and on digits: FL_DATA_DIR=... bash experiments/fedconv/run.sh
#
#   DATA     mnist, digits, space-separated (mnist digits)
#   METHODS  of those below, space-separated (all)
#   SEEDS    comma-separated (0,1)
#   OUT      folder for the runs (outputs/fedconv)
#   FL       the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/fedconv} FL=${FL:-fl} SEEDS=${SEEDS:-0,1} DATA=${DATA:-mnist digits}
METHODS=${METHODS:-fedconv public_only fedavg_public heterofl fedavg}
export OMP_NUM_THREADS=1

declare -A data=(
  # The authors' client, and their share of images that are the server's: 18.8 %.
  [mnist]="data=mnist data.num_train=1500 num_rounds=10 evaluate_every=2 client=adamw client.rule.lr=0.001 \
    client.rule.weight_decay=0 client.batch_size=32"
  [digits]="data=digits num_rounds=15 evaluate_every=5"
)
declare -A public=([mnist]="strategy.rule.public_examples=282" [digits]="")
declare -A choices=(
  [fedconv]="strategy=fedconv strategy.rule.filter_epochs=20"
  [public_only]="strategy=server_training strategy.rule.eta=0"
  [fedavg_public]="strategy=server_training"
  [heterofl]="strategy=heterofl strategy.sub_models.capacity.levels=[1,0.75,0.5625]"
  [fedavg]="strategy=fedavg"
)

for name in $DATA; do
  for method in $METHODS; do
    own=${public[$name]}
    [[ $method != heterofl && $method != fedavg ]] || own=
    # FL, data and choices are words.
    # shellcheck disable=SC2086
    $FL -m ${data[$name]} partition.alpha=0.1 num_clients=10 fleet=uniform executor=serial client.local_epochs=5 \
      "seed=$SEEDS" target=null progress=false views=false "hydra.sweep.dir=$OUT/$name/$method" ${choices[$method]} $own
  done
done
