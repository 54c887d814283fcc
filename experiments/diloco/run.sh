#!/usr/bin/env bash
# All runs of this experiment: FL_DATA_DIR=... bash experiments/diloco/run.sh
#
#   SEEDS  seeds, comma-separated (0,1,2)
#   RATES  learning rates of the gradient (0.001,0.003,0.01)
#   ONLY   names of the methods to run, separated by spaces (all)
#   OUT    folder for the runs (outputs/diloco)
#   FL     the command (fl)
#
# Times at other bandwidths do not need other runs: see times.py.
set -euo pipefail

OUT=${OUT:-outputs/diloco} FL=${FL:-fl} SEEDS=${SEEDS:-0,1,2} RATES=${RATES:-0.001,0.003,0.01}
ONLY=${ONLY:-}
export OMP_NUM_THREADS=1

# 30 steps of warm-up, then a cosine to a twentieth in 270.
schedule='{_target_: fl.clients.Warmup, steps: 30, then: {_target_: fl.clients.CosineDecay, period: 270, floor: 0.05}}'

sweep() { # name, arguments
  [[ -z $ONLY || " $ONLY " == *" $1 "* ]] || return 0
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=diloco "seed=$SEEDS" progress=false "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

inner() { # name, strategy, arguments
  sweep "$1" "strategy=$2" "client.rule.lr=$RATES" "client.rule.step_schedule=$schedule" "${@:3}"
}

sweep data_parallel strategy=data_parallel num_rounds=300 evaluate_every=60 \
  "strategy.rule.optimizer.lr=$RATES" "strategy.rule.optimizer.schedule=$schedule" client.rule.clip_norm=1.0
inner local_sgd local_sgd
inner diloco diloco
inner streaming streaming_diloco
inner streaming_e3m0 streaming_diloco compressor=e3m0
inner delayed delayed_updates
inner delayed_slow delayed_updates strategy.rule.optimizer.lr=0.2
inner eager eager_updates
inner eager_e3m0 eager_updates compressor=e3m0
# DiLoCo with the outer rate of the two papers above, to compare with.
inner diloco_04 diloco strategy.rule.optimizer.lr=0.4
