#!/usr/bin/env bash
# All runs of this experiment: bash experiments/proxskip_vip/run.sh [GAME ...]
#
#   GAME   plain, scaled or squares; without any, all
#   SEEDS  of the runs after tuning, comma-separated (1,2,3,4,5); the games are drawn from them
#   OUT    folder for the runs (outputs/proxskip_vip)
#   FL     the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/proxskip_vip} FL=${FL:-fl} SEEDS=${SEEDS:-1,2,3,4,5}
export OMP_NUM_THREADS=1
GAMES=("$@")
[ $# -gt 0 ] || GAMES=(plain scaled squares)

sweep() { # name, arguments
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m +experiment=proxskip_vip 'data.seed=${seed}' progress=false views=false \
    "hydra.sweep.dir=$OUT/$1" "${@:2}"
}

local_gda=(strategy=fedavg strategy.fraction_train=1.0 client.local_epochs=null)

game() { # name, rates, p, rates of local GDA, best of ProxSkip, best of local GDA with 1 and 10 steps, arguments
  local name=$1 all=("${@:8}")
  sweep "$name/tuning/proxskip" strategy=proxskip seed=0 "client.rule.lr=$2" \
    "strategy.rule.p=$3" "${all[@]}"
  sweep "$name/tuning/local_gda" "${local_gda[@]}" seed=0 "client.rule.lr=$4" \
    client.local_steps=1,10 "${all[@]}"
  local rate_and_p=(${5/,/ })
  sweep "$name/final/proxskip" strategy=proxskip "seed=$SEEDS" \
    "client.rule.lr=${rate_and_p[0]}" "strategy.rule.p=${rate_and_p[1]}" "${all[@]}"
  sweep "$name/final/gda" "${local_gda[@]}" "seed=$SEEDS" "client.rule.lr=$6" \
    client.local_steps=1 "${all[@]}"
  sweep "$name/final/local_gda" "${local_gda[@]}" "seed=$SEEDS" "client.rule.lr=$7" \
    client.local_steps=10 "${all[@]}"
}

for name in "${GAMES[@]}"; do
  case $name in
    plain)
      game plain 0.5,1,1.5 0.3,0.6,1 0.03,0.1,0.3,1,1.5 1,0.6 1 0.1 num_rounds=50 ;;
    scaled)
      game scaled 0.5,1,1.5 0.1,0.2,0.4 0.03,0.1,0.3,1,1.5 1,0.2 1 0.1 data.condition=30 num_rounds=120 ;;
    squares)
      game squares 0.1,0.17,0.25 0.1,0.2,0.4 0.01,0.03,0.1,0.17,0.25 0.17,0.2 0.17 0.03 \
        data=robust_least_squares num_rounds=150 ;;
    *) echo "there is no game $name" >&2 && exit 2 ;;
  esac
done
