#!/usr/bin/env bash
# The runs of this experiment: FL_DATA_DIR=... bash experiments/every_parameter_matters/run.sh
#
#   MIXES  types of the ten clients of a round, space-separated
#   SEEDS  of the runs, space-separated (0)
#   OUT    folder for the runs (outputs/every_parameter_matters)
#   FL     the command (fl)
set -euo pipefail

OUT=${OUT:-outputs/every_parameter_matters} FL=${FL:-fl}
MIXES=${MIXES:-1455666777 1111444477 1111223344 1111111111} SEEDS=${SEEDS:-0}
export OMP_NUM_THREADS=1

for seed in $SEEDS; do
  for rank in permutation magnitude; do
    for mix in $MIXES; do
      [ "$rank/$mix" != magnitude/1111111111 ] || continue # all hold all: the same run
      levels=[$(sed 's/./&,/g; s/,$//' <<<"$mix")]
      # FL is a command with arguments, if need be.
      # shellcheck disable=SC2086
      $FL +experiment=every_parameter_matters "strategy.sub_models.capacity.levels=$levels" \
        "strategy.sub_models.extraction.rank=$rank" "seed=$seed" progress=false views=false \
        checkpoint=off "hydra.run.dir=$OUT/$rank/$mix/$seed"
    done
  done
done
