#!/usr/bin/env bash
# All 60 runs of this experiment: bash experiments/fedcompass/run.sh
#
#   SEEDS  seeds (0,1,2)
#   JOBS   processes at a time (1)
#   OUT    folder for the runs (outputs/fedcompass)
#   FL     the command (fl)
#
# Needs FL_DATA_DIR with MNIST, or the Hugging Face hub.
set -euo pipefail

export SEEDS=${SEEDS:-0,1,2} OUT=${OUT:-outputs/fedcompass} FL=${FL:-fl}
export OMP_NUM_THREADS=1 # one core for each process

sweep() {
  local clients=$1 method=$2 slowdown=$3 updates rounds arguments
  # All methods get about as many client updates; FedCompass has several in a version.
  case $clients in
    5) updates=80 arguments=(partition.num_shards_per_partition=5) ;;
    10) updates=120 arguments=(partition.num_shards_per_partition=4) ;;
  esac
  # alpha / n of the authors' FedAsync; FedBuff's sum of K changes times alpha / n is a mean times
  # alpha K / n.
  case $method in
    fedavg) arguments+=(strategy=fedavg strategy.fraction_train=1
      "strategy.min_train_nodes=$clients" "strategy.min_available_nodes=$clients"
      "num_rounds=$((updates / clients))") ;;
    fedasync) arguments+=(strategy=fedasync client=sgd strategy.rule.rho=0
      "strategy.rule.alpha=$(awk "BEGIN {print 0.9 / $clients}")" "strategy.concurrency=$clients"
      "num_rounds=$updates" "evaluate_every=2") ;;
    fedbuff) arguments+=(strategy=fedbuff strategy.rule.buffer_size=3
      "strategy.rule.server_optimizer.eta=$(awk "BEGIN {print 2.7 / $clients}")" "strategy.concurrency=$clients"
      "num_rounds=$((updates / 3))") ;;
    fedcompass) rounds=$((updates / 3))
      if [ "$slowdown" = constant ]; then rounds=$((clients + updates / clients)); fi
      arguments+=(strategy=fedcompass strategy.rule.min_steps=10 strategy.rule.max_steps=50
        "num_rounds=$rounds") ;;
  esac
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=fedcompass "seed=$SEEDS" "num_clients=$clients" progress=false \
    "fleet/slowdown@fleet.client_slowdown=$slowdown" "hydra.sweep.dir=$OUT/${clients}_${method}_$slowdown" "${arguments[@]}"
}
export -f sweep

for setting in "5 exponential" "5 normal" "5 constant" "10 exponential" "10 normal"; do
  read -r clients slowdown <<< "$setting"
  for method in fedcompass fedavg fedasync fedbuff; do
    echo "$clients $method $slowdown"
  done
done | xargs --max-procs="${JOBS:-1}" --max-lines=1 bash -c 'sweep "$@"' sweep
