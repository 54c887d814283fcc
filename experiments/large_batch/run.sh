#!/usr/bin/env bash
# All runs of this experiment: bash experiments/large_batch/run.sh
#
#   OUT  folder for the runs (outputs/large_batch)
#   FL   the command (fl)
#
# Every batch is tuned with seed 0, in `tune`; the best rate of each is run with seeds 1, 2, 3, in
# `final`. FL_DATA_DIR has MNIST.
set -euo pipefail

here=$(dirname "$0")
OUT=${OUT:-outputs/large_batch} FL=${FL:-fl}
export OMP_NUM_THREADS=1
RATES=0.1,0.2,0.4,0.8,1.6

# rounds BATCH: enough for the rates near the best one to reach the target
rounds() {
  case $1 in
    64) echo 200 ;;
    128) echo 160 ;;
    *) echo 120 ;;
  esac
}

sweep() {
  local folder=$1 batch=$2 rates=$3 seeds=$4
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=large_batch "client.batch_size=$((batch / 8))" "num_rounds=$(rounds "$batch")" \
    "client.rule.lr=$rates" "seed=$seeds" "hydra.sweep.dir=$OUT/$folder/$batch"
}

for batch in 64 128 256 512 1024 2048 4096 8192; do
  sweep tune "$batch" "$RATES" 0
  best=$(python "$here/report.py" --best "$OUT/tune/$batch")
  sweep final "$batch" "$best" 1,2,3
done
