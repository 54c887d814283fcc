#!/usr/bin/env bash
# All runs of this experiment: bash experiments/proxskip_vip/run.sh [GAME ...]
#
#   GAME   plain, scaled, squares or batches; without any, all
#   SEEDS  of the runs after tuning, comma-separated (1,2,3,4,5); games are drawn from them
#   OUT    folder for the runs (outputs/proxskip_vip)
#   FL     the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/proxskip_vip} FL=${FL:-fl} SEEDS=${SEEDS:-1,2,3,4,5}
export OMP_NUM_THREADS=1
GAMES=("$@")
[ $# -gt 0 ] || GAMES=(plain scaled squares batches)

sweep() { # name, arguments
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2016,SC2086
  $FL -m +experiment=proxskip_vip 'data.seed=${seed}' progress=false views=false \
    "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

proxskip() { # name, seeds, rates, p, arguments
  sweep "$1/proxskip" strategy=proxskip "seed=$2" "client.rule.lr=$3" "strategy.rule.p=$4" "${@:5}"
}

gda() { # name, seeds, rates, local steps, arguments
  sweep "$1/gda_$4" strategy=fedavg strategy.fraction_train=1.0 client.local_epochs=null \
    "seed=$2" "client.rule.lr=$3" "client.local_steps=$4" "${@:5}"
}

for game in "${GAMES[@]}"; do
  tuning=$game/tuning final=$game/final
  case $game in
    plain)
      of=(num_rounds=50)
      proxskip "$tuning" 0 0.25,0.5,1,1.5 0.15,0.2,0.3,0.6,1 "${of[@]}"
      gda "$tuning" 0 0.03,0.1,0.3,1,1.5 1 "${of[@]}"
      gda "$tuning" 0 0.01,0.03,0.1,0.3,1,1.5 10 "${of[@]}"
      proxskip "$final" "$SEEDS" 0.5 0.3 "${of[@]}"
      gda "$final" "$SEEDS" 1 1 "${of[@]}"
      gda "$final" "$SEEDS" 0.03 10 "${of[@]}" ;;
    scaled)
      of=(num_rounds=120 data.condition=30 data.samples=20)
      proxskip "$tuning" 0 0.5,1,1.5 0.05,0.1,0.2 "${of[@]}"
      gda "$tuning" 0 0.5,1,1.5,2,3 1 "${of[@]}"
      gda "$tuning" 0 0.03,0.1,0.3,1 10 "${of[@]}"
      proxskip "$final" "$SEEDS" 1 0.1 "${of[@]}"
      gda "$final" "$SEEDS" 2 1 "${of[@]}"
      gda "$final" "$SEEDS" 0.3 10 "${of[@]}" ;;
    squares)
      of=(num_rounds=150 data=robust_least_squares)
      proxskip "$tuning" 0 0.1,0.17,0.25,0.3 0.1,0.2,0.4,0.6,0.8 "${of[@]}"
      gda "$tuning" 0 0.1,0.17,0.25,0.3,0.35,0.4,0.5,0.6 1 "${of[@]}"
      gda "$tuning" 0 0.003,0.01,0.03,0.1,0.17 10 "${of[@]}"
      of=(num_rounds=120 data=robust_least_squares)
      proxskip "$final" "$SEEDS" 0.25 0.6 "${of[@]}"
      gda "$final" "$SEEDS" 0.6 1 "${of[@]}"
      gda "$final" "$SEEDS" 0.1 10 "${of[@]}" ;;
    batches) # the plain game, ten examples a step
      of=(num_rounds=120 client.batch_size=10)
      references=(client.correction.variance_reduction=true)
      proxskip "$tuning/sgda" 0 0.003,0.01,0.03,0.1,0.3 0.3 "${of[@]}"
      proxskip "$tuning/svrgda" 0 0.1,0.3,0.6,1 0.3 "${of[@]}" "${references[@]}" strategy.rule.q=0.02,0.05,0.2
      gda "$tuning" 0 0.01,0.03,0.1,0.3 1 "${of[@]}"
      gda "$tuning" 0 0.003,0.01,0.03,0.1 5 "${of[@]}"
      proxskip "$final/sgda" "$SEEDS" 0.01 0.3 "${of[@]}"
      proxskip "$final/svrgda" "$SEEDS" 0.6 0.3 "${of[@]}" "${references[@]}" strategy.rule.q=0.02
      gda "$final" "$SEEDS" 0.03 1 "${of[@]}"
      gda "$final" "$SEEDS" 0.01 5 "${of[@]}" ;;
    *) echo "there is no game $game" >&2 && exit 2 ;;
  esac
done
