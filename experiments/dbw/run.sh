#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/dbw/run.sh
#
#   SEEDS   seeds, separated by commas (0,1)
#   LAWS    of the workers' times (exponential shifted measured, and exponential_500: batches of 500)
#   BACKUP  static numbers of backup workers (0 4 8 10 12 14)
#   OUT     folder for the runs (outputs/dbw)
#   FL      the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/dbw} FL=${FL:-fl} SEEDS=${SEEDS:-0,1} N=16 ETA=0.2
LAWS=${LAWS:-exponential shifted measured exponential_500} BACKUP=${BACKUP:-0 4 8 10 12 14}
export OMP_NUM_THREADS=1 # one core

for law in $LAWS; do
  case $law in
    exponential) fleet=(fleet/slowdown@fleet.task_slowdown=shifted_exponential fleet.task_slowdown.shift=0.0 fleet.task_slowdown.mean=1.0) ;; # a = 1
    exponential_500) fleet=(fleet/slowdown@fleet.task_slowdown=shifted_exponential client.batch_size=500) ;;
    shifted) fleet=(fleet/slowdown@fleet.task_slowdown=shifted_exponential fleet.task_slowdown.shift=0.8 fleet.task_slowdown.mean=0.2) ;;     # a = 0.2
    measured) fleet=(fleet=serverless fleet.wrap=true) ;;
  esac
  sweep() {
    # FL is a command with arguments, if need be.
    # shellcheck disable=SC2086
    $FL -m +experiment=dbw progress=false views=false "seed=$SEEDS" "${fleet[@]}" "hydra.sweep.dir=$OUT/$law/$1" "${@:2}"
  }
  sweep dbw strategy=dbw
  # The same learning rate as DBW, and one in proportion to k = n - b.
  sweep equal strategy=backup_workers "strategy.rule.backup=${BACKUP// /,}"
  for b in $BACKUP; do
    sweep "proportional_$b" strategy=backup_workers "strategy.rule.backup=$b" \
      "strategy.rule.eta=$(awk "BEGIN {print $ETA * ($N - $b) / $N}")"
  done
done
