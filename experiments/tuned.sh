# Sourced by the run.sh of experiments that compare methods, each at settings of its own:
#
#   tune METHOD ARGUMENT ...    runs a grid with the seeds TUNING, in OUT/METHOD/tune; more than once, if need be
#   final METHOD ARGUMENT ...   runs its best point with the seeds SEEDS, in OUT/METHOD/final
#
# for every value of KEY in CASES, each with a best point of its own: that of all that was tuned, if a
# case was not. What is in COMMON is all runs'. tuned.py chooses, and makes the tables.

SEEDS=${SEEDS:-0,1,2,3,4} TUNING=${TUNING:-100} FL=${FL:-fl}
TUNED=$(dirname "${BASH_SOURCE[0]}")/tuned.py
export OMP_NUM_THREADS=1

jobs_in() { # folder, seeds, arguments
  # FL is a command with arguments, if need be.
  # shellcheck disable=SC2086
  $FL -m "${COMMON[@]}" progress=false views=false checkpoint=off "hydra.sweep.dir=$1" "seed=$2" "${@:3}"
}

tune() {
  jobs_in "$OUT/$1/tune" "$TUNING" "$KEY=$CASES" "${@:2}"
}

final() {
  local best
  python "$TUNED" best "$OUT/$1/tune" "$KEY" "$CASES" | while read -r best; do
    # shellcheck disable=SC2086
    jobs_in "$OUT/$1/final" "$SEEDS" "${@:2}" $best </dev/null
  done
}
