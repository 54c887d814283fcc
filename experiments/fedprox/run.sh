#!/usr/bin/env bash
# All 96 runs of this experiment: bash experiments/fedprox/run.sh
#
#   ROUNDS  rounds of a run (30; the paper has 200)
#   JOBS    processes at a time (2)
#   OUT     folder for the runs (outputs/fedprox)
#   FL      the command (fl)
#
# FedAvg without stragglers is FedProx with mu = 0 without stragglers, so it is not run again.
set -euo pipefail

export ROUNDS=${ROUNDS:-30} OUT=${OUT:-outputs/fedprox} FL=${FL:-fl}
export OMP_NUM_THREADS=1 # one core for each process

sweep() {
  local name=$1 seed=$2 method=$3 arguments
  case $method in
    fedprox) arguments=(strategy.rule.mu=0,1 strategy.rule.straggler_fraction=0,0.5,0.9) ;;
    fedavg) arguments=(strategy.rule.mu=0 strategy.rule.straggler_fraction=0.5,0.9
      strategy.rule.drop_stragglers=true) ;;
  esac
  case $name in
    iid) arguments+=(data=synthetic_iid) ;;
    *) arguments+=("data.alpha=$name" "data.beta=$name") ;;
  esac
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=fedprox "seed=$seed" "num_rounds=$ROUNDS" progress=false \
    "hydra.sweep.dir=$OUT/synthetic_$name/${method}_$seed" "${arguments[@]}"
}
export -f sweep

# The most heterogeneous data first: the paper's Figure 1.
for name in 1 0.5 0 iid; do
  for seed in 0 1 2; do
    echo "$name $seed fedprox"
    echo "$name $seed fedavg"
  done
done | xargs --max-procs="${JOBS:-2}" --max-lines=1 bash -c 'sweep "$@"' sweep
