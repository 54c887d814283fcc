#!/usr/bin/env bash
# All runs of this experiment: bash experiments/savic/run.sh [H ...]
#
#   H      local steps, 1, 8 or 32; without any, all
#   SEEDS  of the runs after tuning, comma-separated (1,2,3,4,5)
#   OUT    folder for the runs (outputs/savic)
#   FL     the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/savic} FL=${FL:-fl} SEEDS=${SEEDS:-1,2,3,4,5}
export OMP_NUM_THREADS=1
[ $# -gt 0 ] || set -- 1 8 32

sweep() { # folder, H, arguments
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=savic "client.local_steps=$2" progress=false views=false checkpoint=off \
    "hydra.sweep.dir=$OUT/$1" "${@:3}"
}

tune() { # H, method, rates, alphas
  sweep "tuning/$1/${2/,/_}" "$1" evaluate_every=10 "client.rule.lr=$3" \
    strategy=savic "strategy.rule.scaling=$2" "strategy.rule.alpha=$4"
}

tune_sgd() { # H, rates
  sweep "tuning/$1/local_sgd" "$1" evaluate_every=10 "client.rule.lr=$2" strategy=fedavg aggregator.weighted=false
}

final() { # H, method, rate, alpha
  sweep "final/$1/$2_$4" "$1" "seed=$SEEDS" "client.rule.lr=$3" \
    strategy=savic "strategy.rule.scaling=$2" "strategy.rule.alpha=$4"
}

final_sgd() { # H, rate
  sweep "final/$1/local_sgd" "$1" "seed=$SEEDS" "client.rule.lr=$2" strategy=fedavg aggregator.weighted=false
}

for H in "$@"; do
  case $H in
    1)
      tune_sgd 1 0.03,0.1,0.3,1
      tune 1 adam,rmsprop 0.01,0.03,0.1 1e-5,1e-4,1e-3
      tune 1 adam 0.01,0.03,0.1 0.01,0.1,1
      tune 1 oasis 0.03,0.1,0.3 1e-4
      tune 1 oasis 0.01,0.03,0.1,0.3 1e-3,0.01,0.1
      tune 1 oasis 0.1,0.3 1
      final_sgd 1 0.1
      final 1 adam 0.03 0.01
      final 1 rmsprop 0.03 1e-5
      final 1 rmsprop 0.03 0.01
      final 1 oasis 0.1 0.1
      ;;
    8)
      tune_sgd 8 0.003,0.01,0.03,0.1,0.3,1
      tune 8 adam,rmsprop 0.01,0.03 1e-6
      tune 8 adam,rmsprop 0.003,0.01,0.03 1e-5,1e-4
      tune 8 adam,rmsprop 0.003,0.01,0.03,0.1 1e-3,0.01,0.1,1
      tune 8 oasis 0.01,0.03,0.1 1e-6,1e-5,1e-4,1e-3,0.01,0.1
      final_sgd 8 0.1
      final 8 adam 0.01 1e-5
      final 8 adam 0.01 0.01
      final 8 rmsprop 0.03 1e-5
      final 8 rmsprop 0.01 0.01
      final 8 oasis 0.03 1e-3
      ;;
    32)
      tune_sgd 32 0.01,0.03,0.1,0.3
      tune 32 adam,rmsprop 0.001,0.003,0.01 1e-5,1e-4,1e-3
      tune 32 adam,rmsprop 0.03,0.1 1e-5,1e-4
      tune 32 oasis 0.003,0.01,0.03,0.1 1e-4,1e-3,0.01
      final_sgd 32 0.03
      final 32 adam 0.01 1e-5
      final 32 rmsprop 0.01 1e-5
      final 32 oasis 0.03 1e-3
      ;;
    *) echo "H is $H; it must be 1, 8 or 32" >&2 && exit 2 ;;
  esac
done
