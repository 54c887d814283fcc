#!/usr/bin/env bash
# All runs of this experiment: bash experiments/asynchronous/run.sh
#
#   SEEDS  seeds, comma-separated (0,1)
#   OUT    folder for the runs (outputs/asynchronous)
#   FL     the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/asynchronous} FL=${FL:-fl} SEEDS=${SEEDS:-0,1}
export OMP_NUM_THREADS=1

sweep() { # spread, seconds, name, arguments: every rate, every seed
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=asynchronous "fleet.speed_spread=$1" "time_limit_s=$2" progress=false \
    client.rule.lr=0.03,0.1,0.3 "seed=$SEEDS" "hydra.sweep.dir=$OUT/spread_$1/$3" "${@:4}"
}

for fleet in "5 120" "50 400"; do
  read -r spread seconds <<<"$fleet"
  # Nobody fails: exactly ten tasks are in flight, however long one takes.
  sweep "$spread" "$seconds" slots strategy=fedasync,fedbuff,async_fedavg strategy.patience=null
  sweep "$spread" "$seconds" others strategy=fedavg,favas,quafl,fedfix
  # Its steps for a client range over the factor 5 that the paper has, around the others' 5 steps.
  sweep "$spread" "$seconds" fedcompass strategy=fedcompass strategy.rule.min_steps=2 \
    strategy.rule.max_steps=10
done
